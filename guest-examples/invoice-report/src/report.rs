//! The job `invoice_report`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqjobs_sdk::prelude::*;

use crate::money::Money;
use crate::orders::{self, Order};
use crate::reminder::InvoiceReminder;
use crate::render::{self, Format};

/// Orders between two reports of progress.
const PROGRESS_STEP: usize = 1_000;

/// Adds up a month's orders. Called by `month`, `orders` and, if it shall be CSV, `format`.
#[derive(Default)]
pub(crate) struct InvoiceReport;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    month: String,
    /// CSV text or a list of objects.
    orders: Box<RawValue>,
    #[serde(default)]
    format: Format,
}

/// What is stored.
#[derive(Serialize)]
struct Report {
    month: String,
    orders: usize,
    total: Money,
    unpaid: Money,
    /// The report itself, in the format that was asked for.
    document: String,
}

/// What one customer ordered.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Number of orders.
    pub(crate) orders: usize,
    /// What they cost.
    pub(crate) total: Money,
    /// What of that is not paid.
    pub(crate) unpaid: Money,
    /// The orders that are not paid.
    pub(crate) unpaid_orders: Vec<String>,
}

impl Job for InvoiceReport {
    const NAME: &str = "invoice_report";
    const QUEUE: Option<&str> = Some("reports");

    fn options() -> Options {
        Options::new().timeout(Duration::from_secs(300)).max_attempts(3)
    }

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let request: Request = call.kwargs()?;
        check_month(&request.month)?;
        progress(0.0, "reading orders");
        let orders = orders::read(&request.orders)?;
        info!(orders = orders.len(); "{} orders in {}", orders.len(), request.month);

        let accounts = add_up(&orders);
        progress(0.9, "rendering");
        let document = render::report(request.format, &request.month, &accounts);
        for (customer, account) in &accounts {
            if !account.unpaid_orders.is_empty() {
                let reminder = NewJob::of::<InvoiceReminder>()
                    .kwarg("customer", customer)
                    .kwarg("orders", &account.unpaid_orders)
                    .kwarg("amount", account.unpaid);
                add_job(reminder)?;
            }
        }
        progress(1.0, "done");
        Ok(Report {
            month: request.month,
            orders: orders.len(),
            total: accounts.values().map(|account| account.total).sum(),
            unpaid: accounts.values().map(|account| account.unpaid).sum(),
            document,
        })
    }

    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        if report.retry_in().is_none() {
            error!("the report {} will not be made: {}", call.id(), report.message());
        }
        Ok(())
    }
}

/// A month is `YYYY-MM`.
fn check_month(month: &str) -> Result<()> {
    let is_month = month.split_once('-').is_some_and(|(year, month)| {
        let is_number = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
        let in_year = month.parse().is_ok_and(|number: u8| (1..=12).contains(&number));
        year.len() == 4 && month.len() == 2 && is_number(year) && is_number(month) && in_year
    });
    is_month.then_some(()).or_permanent(format!("`{month}` is no month such as `2024-05`"))
}

/// The accounts by customer, in the order of their names.
fn add_up(orders: &[Order]) -> BTreeMap<String, Account> {
    let mut accounts = BTreeMap::<String, Account>::new();
    for (index, order) in orders.iter().enumerate() {
        if index.is_multiple_of(PROGRESS_STEP) {
            let message = format!("order {} of {}", index + 1, orders.len());
            progress(0.9 * index as f64 / orders.len() as f64, message.as_str());
        }
        let account = accounts.entry(order.customer.clone()).or_default();
        account.orders += 1;
        account.total = [account.total, order.amount].into_iter().sum();
        if !order.paid {
            account.unpaid = [account.unpaid, order.amount].into_iter().sum();
            account.unpaid_orders.push(order.order.clone());
        }
    }
    accounts
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "order,customer,amount,paid\n\
                       1,Ada <ada@example.com>,10.10,yes\n\
                       2,Bob,20.00,no\n\
                       3,Bob,0.25,no\n";

    #[derive(Deserialize)]
    struct Stored {
        orders: usize,
        total: Money,
        unpaid: Money,
        document: String,
    }

    #[test]
    fn orders_are_added_up_and_who_owes_is_reminded() {
        let outcome = testing::attempt::<InvoiceReport>()
            .kwarg("month", "2024-05")
            .kwarg("orders", CSV)
            .run();
        let report: Stored = outcome.result();
        assert_eq!(report.orders, 3);
        assert_eq!(
            (report.total.to_string(), report.unpaid.to_string()),
            ("30.35".into(), "20.25".into())
        );
        assert!(report.document.contains("Ada &lt;ada@example.com&gt;"), "{}", report.document);

        let [reminder] = outcome.added_jobs() else { panic!("one reminder: {outcome:?}") };
        assert_eq!(reminder.name, "invoice_reminder");
        assert_eq!(reminder.kwargs, r#"{"customer":"Bob","orders":["2","3"],"amount":"20.25"}"#);
        assert_eq!(outcome.progress().last(), Some(&(1.0, Some("done".to_owned()))));
        assert_eq!(outcome.log_text(), "3 orders in 2024-05");
    }

    #[test]
    fn orders_come_as_objects_too_and_the_report_as_csv() {
        let outcome = testing::attempt::<InvoiceReport>()
            .kwargs_json(
                r#"{"month": "2024-05", "format": "csv", "orders":
                    [{"order": "1", "customer": "A, \"B\"", "amount": "1.00", "paid": true}]}"#,
            )
            .run();
        let report: Stored = outcome.result();
        assert_eq!(
            report.document,
            "customer,orders,total,unpaid\r\n\"A, \"\"B\"\"\",1,1.00,0.00\r\n"
        );
        assert!(outcome.added_jobs().is_empty());
    }

    #[test]
    fn faulty_input_fails_for_good_and_adds_nothing() {
        let with = |month: &str, orders: &str| {
            testing::attempt::<InvoiceReport>().kwarg("month", month).kwarg("orders", orders).run()
        };
        let outcome = with("May", CSV);
        assert_eq!(outcome.failure_message(), "`May` is no month such as `2024-05`");
        for outcome in [outcome, with("2024-13", CSV), with("2024-05", &format!("{CSV}4,x"))] {
            assert!(outcome.is_permanent());
            assert!(outcome.added_jobs().is_empty());
            assert!(outcome.log_text().contains("will not be made"));
        }
    }
}
