//! The job `invoice_reminder`.

use serde::Deserialize;
use sqjobs_sdk::prelude::*;

use crate::money::Money;

/// Writes the reminder of a customer's unpaid orders. Added by `invoice_report`.
#[derive(Default)]
pub(crate) struct InvoiceReminder;

#[derive(Deserialize)]
struct Request {
    customer: String,
    orders: Vec<String>,
    amount: Money,
}

impl Job for InvoiceReminder {
    const NAME: &str = "invoice_reminder";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let Request { customer, orders, amount } = call.kwargs()?;
        if orders.is_empty() {
            return Err(Failure::permanent(format!("there is nothing to remind {customer} of")));
        }
        let orders = orders.join(", ");
        Ok(format!("Dear {customer},\n\nplease pay {amount} for your orders {orders}.\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_orders_and_the_amount() {
        let outcome = testing::attempt::<InvoiceReminder>()
            .kwarg("customer", "Bob")
            .kwarg("orders", ["2", "3"])
            .kwarg("amount", "20.25")
            .run();
        assert_eq!(
            outcome.result::<String>(),
            "Dear Bob,\n\nplease pay 20.25 for your orders 2, 3.\n"
        );
    }
}
