//! Periodic entries that are due on whole minutes, claimed by real beaters.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sqjobs::clock::{Clock, Timestamp};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _};
use support::WorkerProcess;
use support::host::Output;
use support::servers::{self, RUNTIME};

use crate::bench::wait_for;
use crate::figures::tell;

const MINUTE: i64 = 60_000;
/// How fast entries are copied, at the least, for a first minute that is far enough away.
const COPIED_A_SECOND: usize = 5_000;

/// `count` entries, an equal part of them due on each of `minutes` whole minutes, one after the
/// other, and so many beaters: how late each was claimed, by the rows of the ticks; and by the
/// clock of this process, from each minute until the last of its ticks was committed, and at the
/// end until the last job was sent to the embedded queue.
pub(crate) fn ticks(host: &str, count: usize, beaters: usize, minutes: usize) {
    assert!(minutes > 0 && 60 % minutes == 0 && count.is_multiple_of(minutes), "60 / MINUTES");
    let place = Place::new(host);
    let now = Clock::system().now();
    let earliest = now.after(Duration::from_secs(20 + (count / COPIED_A_SECOND) as u64));
    let first = Timestamp((earliest.0 / MINUTE + 1) * MINUTE);
    let begun = Instant::now();
    for slot in 0..minutes {
        place.add(first, slot, minutes, count / minutes);
    }
    eprintln!("{count} entries are there after {:.1} s", begun.elapsed().as_secs_f64());
    let mut processes: Vec<_> = (0..beaters).map(|_| place.beater()).collect();
    processes.iter_mut().for_each(|beater| drop(beater.wait_until_ready()));
    assert!(Clock::system().now() < first, "the entries were not there in time");
    for slot in 0..minutes {
        watch(&place, first.0 + slot as i64 * MINUTE, count / minutes);
    }
    let outbox = place.table("outbox");
    wait_for("an empty outbox", || place.count(&outbox) == 0);
    let last = first.0 + (minutes as i64 - 1) * MINUTE;
    println!("the last job was sent {:.2} s after the last minute", since(last).as_secs_f64());
    for beater in &mut processes {
        assert_eq!(beater.terminate(), Some(0), "{}", beater.shown());
    }
    place.each_entry_has_one_tick_and_one_job(count);
    let lateness = place.lateness();
    tell(
        &format!("lateness of {count} ticks over {minutes} minute(s), {beaters} beater(s)"),
        lateness.iter().map(|ms| Duration::from_millis(ms.unsigned_abs())).collect(),
    );
}

/// Waits for the minute, then for its ticks, and tells how long they took.
fn watch(place: &Place, minute: i64, count: usize) {
    std::thread::sleep(Timestamp(minute).since(Clock::system().now()));
    let ticks = format!(
        "{} WHERE fire_time = {minute} AND outcome = 'queued'",
        place.table("periodic_ticks")
    );
    let wanted = i64::try_from(count).unwrap();
    wait_for("the ticks of a minute", || place.count(&ticks) == wanted);
    let took = since(minute).as_secs_f64();
    let waiting = place.count(&place.table("outbox"));
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let rate = count as f64 / took;
    println!(
        "{count} ticks of one minute: the last was committed after {took:.2} s ({rate:.0} claims \
         a second), with {waiting} jobs still to be sent"
    );
}

/// By the clock of this process.
fn since(minute: i64) -> Duration {
    Clock::system().now().since(Timestamp(minute))
}

/// A folder with a database of its own: SQLite, or a schema of the PostgreSQL that
/// `SQJOBS_BENCH_DATABASE_URL` names. The queue is the embedded one.
struct Place {
    host: String,
    folder: PathBuf,
    postgres: Option<(String, String)>,
}

impl Place {
    fn new(host: &str) -> Self {
        let folder = std::env::temp_dir().join(servers::unique("bench"));
        std::fs::create_dir_all(&folder).unwrap();
        let url = std::env::var("SQJOBS_BENCH_DATABASE_URL").ok();
        let postgres = url.map(|url| (url, servers::unique("bench")));
        let place = Self { host: host.to_owned(), folder, postgres };
        let _ = Output::of(place.command(&["migrate"])).ok();
        place
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.host);
        command.args(arguments).current_dir(&self.folder);
        if let Some((url, schema)) = &self.postgres {
            command.env("SQJOBS_DATABASE", url).env("SQJOBS_SCHEMA", schema);
        }
        command
    }

    fn beater(&self) -> WorkerProcess {
        WorkerProcess::spawn(self.command(&["beater"]))
    }

    fn table(&self, name: &str) -> String {
        match &self.postgres {
            Some((_, schema)) => format!("{schema}.{name}"),
            None => format!("sqjobs_{name}"),
        }
    }

    /// Adds an entry by the command, and copies its rows until there are `count`.
    fn add(&self, first: Timestamp, slot: usize, minutes: usize, count: usize) {
        let minute = usize::try_from(first.0 / MINUTE).unwrap() + slot;
        let schedule = match minutes {
            1 => "* * * * *".to_owned(),
            _ => format!("{}-59/{minutes} * * * *", minute % minutes),
        };
        let name = format!("slot-{slot}");
        let end = first.after(Duration::from_millis(minutes as u64 * MINUTE.unsigned_abs()));
        let _ = Output::of(self.command(&[
            "periodic",
            "add",
            &name,
            "--job",
            "tick",
            "--queue",
            "ticks",
            "--args-json",
            "[1, 2]",
            "--schedule",
            &schedule,
            "--timezone",
            "UTC",
            "--start",
            &first.short(),
            "--end",
            &end.short(),
        ]))
        .ok();
        let columns = "job, queue, schedule, timezone, every_ms, args, kwargs, catch_up, \
             max_lateness_ms, grace_ms, overlap, jitter_ms, start_at, end_at, enabled, \
             next_fire_at, due_at, created_at, updated_at, source";
        self.execute(&format!(
            "INSERT INTO {table} (name, {columns}) \
             WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers \
             WHERE n < {count} - 1) \
             SELECT name || '-' || n, {columns} FROM {table}, numbers WHERE name = '{name}'",
            table = self.table("periodic"),
        ));
    }

    fn each_entry_has_one_tick_and_one_job(&self, count: usize) {
        let count = i64::try_from(count).unwrap();
        let (ticks, jobs) = (self.table("periodic_ticks"), self.table("jobs"));
        let queued = "WHERE outcome = 'queued'";
        let seen = [
            self.count(&format!("(SELECT DISTINCT schedule FROM {ticks} {queued}) x")),
            self.count(&ticks),
            self.count(&format!("(SELECT DISTINCT schedule FROM {jobs} WHERE sends = 1) x")),
            self.count(&jobs),
        ];
        assert_eq!(seen, [count; 4], "entries with a tick, ticks, entries with a job, jobs");
    }

    /// By the database's clock, in milliseconds: from each tick until it was claimed.
    fn lateness(&self) -> Vec<i64> {
        let sql = format!("SELECT claimed_at - fire_time FROM {}", self.table("periodic_ticks"));
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap()
        })
    }

    fn count(&self, what: &str) -> i64 {
        let sql = format!("SELECT CAST(count(*) AS bigint) FROM {what}");
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap()
        })
    }

    fn execute(&self, sql: &str) {
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            let query = sqlx::query(AssertSqlSafe(sql.to_owned()));
            query.execute(&mut connection).await.unwrap();
        });
    }

    async fn connect(&self) -> AnyConnection {
        sqlx::any::install_default_drivers();
        let url = match &self.postgres {
            Some((url, _)) => url.clone(),
            None => format!("sqlite:{}", self.folder.join(".sqjobs/sqjobs.db").display()),
        };
        AnyConnection::connect(&url).await.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((_, schema)) = &self.postgres
            && !std::thread::panicking()
        {
            self.execute(&format!("DROP SCHEMA {schema} CASCADE"));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
