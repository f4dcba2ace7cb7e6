//! The report as a document.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::report::Account;

/// What the report is written in.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A page to look at.
    #[default]
    Html,
    /// A table to go on with.
    Csv,
}

/// The document of a month.
pub(crate) fn report(format: Format, month: &str, accounts: &BTreeMap<String, Account>) -> String {
    let mut document = String::new();
    let written = match format {
        Format::Html => html(&mut document, month, accounts),
        Format::Csv => csv(&mut document, accounts),
    };
    written.expect("a String takes every write");
    document
}

fn html(out: &mut String, month: &str, accounts: &BTreeMap<String, Account>) -> std::fmt::Result {
    writeln!(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<title>Orders of {month}</title>\n<h1>Orders of {month}</h1>\n<table>")?;
    writeln!(out, "<tr><th>Customer<th>Orders<th>Total<th>Unpaid")?;
    for (customer, Account { orders, total, unpaid, .. }) in accounts {
        let customer = escape_html(customer);
        writeln!(out, "<tr><td>{customer}<td>{orders}<td>{total}<td>{unpaid}")?;
    }
    writeln!(out, "</table>\n</html>")
}

fn csv(out: &mut String, accounts: &BTreeMap<String, Account>) -> std::fmt::Result {
    write!(out, "customer,orders,total,unpaid\r\n")?;
    for (customer, Account { orders, total, unpaid, .. }) in accounts {
        let customer = customer.replace('"', "\"\"");
        write!(out, "\"{customer}\",{orders},{total},{unpaid}\r\n")?;
    }
    Ok(())
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
