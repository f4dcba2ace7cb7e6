//! What a shop runs in the background once a month: a report of its orders, and a reminder for
//! each customer who has not paid.
//!
//! `invoice_report` takes the orders as CSV text or as JSON objects, adds them up for each
//! customer, renders the report as HTML or CSV, tells its progress, and adds one
//! `invoice_reminder` for each customer with unpaid orders. Faulty input fails for good, with all
//! its faults named.

mod money;
mod orders;
mod reminder;
mod render;
mod report;

use reminder::InvoiceReminder;
use report::InvoiceReport;

sqjobs_sdk::export!(InvoiceReport, InvoiceReminder);
