//! Adding a job within a transaction of the application's own.

use sqlx::{AssertSqlSafe, Encode, Executor, IntoArguments, Transaction, Type};

use super::{AddError, Added, Client, Door, JobRequest};
use crate::clock::Clock;
use crate::payload::{self, MAX_ID_BYTES, MAX_NAME_BYTES};
use crate::store::StoreError;

impl Client {
    /// Adds a job within a transaction on the database that this client keeps its jobs in: it is
    /// sent once the transaction commits, by whatever worker or beater runs, and never if it does
    /// not. The queue must be one that is configured or served.
    ///
    /// ```no_run
    /// # use sqjobs::client::{Client, JobRequest};
    /// # async fn order(client: &Client, pool: &sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *transaction).await?;
    /// let request = JobRequest::new("send_invoice").args(&[7])?.queue("mail");
    /// let added = client.add_job_in(&mut transaction, request).await?;
    /// transaction.commit().await?;
    /// println!("{}", added.id);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The request is not well formed, no queue is known, the client is an eager one, or the
    /// database failed.
    pub async fn add_job_in<DB>(
        &self,
        transaction: &mut Transaction<'_, DB>,
        request: JobRequest,
    ) -> Result<Added, AddError>
    where
        DB: sqlx::Database,
        DB::Arguments: IntoArguments<DB>,
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
        for<'q> String: Encode<'q, DB> + Type<DB>,
        for<'q> Option<String>: Encode<'q, DB> + Type<DB>,
        for<'q> i64: Encode<'q, DB> + Type<DB>,
    {
        let Door::Queue { store, .. } = &self.door else { return Err(AddError::NoTransaction) };
        let id = request.id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        payload::check_text("id", &id, MAX_ID_BYTES)?;
        if id.contains('#') {
            let reason = "contains `#`, and a worker would know the job by the part before it";
            return Err(payload::Malformed::BadText { key: "id", reason: reason.into() }.into());
        }
        payload::check_text("name", &request.name, MAX_NAME_BYTES)?;
        let known = store.deployed_job(&request.name).await?;
        let records_result = known.as_ref().is_none_or(|known| known.records_result);
        let queue = match (request.queue, known) {
            (Some(queue), _) => queue,
            (None, Some(known)) => {
                known.queue.ok_or(AddError::NoDefaultQueue { job: request.name.clone() })?
            }
            (None, None) => return Err(AddError::NoQueue { job: request.name }),
        };
        let now = Clock::system().now();
        let not_before = if request.delay.is_zero() { 0 } else { now.after(request.delay).0 };
        let insert = format!(
            "INSERT INTO {} (job_id, job_name, queue, args, kwargs, message_group, enqueued_at, \
             not_before) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            store.table("outbox")
        );
        sqlx::query::<DB>(AssertSqlSafe(insert))
            .bind(id.clone())
            .bind(request.name)
            .bind(queue)
            .bind(request.args)
            .bind(request.kwargs)
            .bind(request.group)
            .bind(now.0)
            .bind(not_before)
            .execute(&mut **transaction)
            .await
            .map_err(|source| StoreError::Statement {
                database: store.label().to_owned(),
                action: "add a job within a transaction",
                source,
            })?;
        Ok(Added { id, is_existing: false, records_result, result: None, unsent: None })
    }
}
