//! The orders, from JSON objects or from CSV text.

use serde::Deserialize;
use sqjobs_sdk::prelude::*;
use sqjobs_sdk::serde_json;

use crate::money::Money;

/// Faults told at most, so that a file with a wrong separator doesn't fill the error.
const MAX_FAULTS: usize = 10;

/// The header that CSV text begins with.
const HEADER: [&str; 4] = ["order", "customer", "amount", "paid"];

/// One order.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// Number of the order, as the shop writes it.
    pub(crate) order: String,
    /// Who ordered.
    pub(crate) customer: String,
    /// What it costs.
    pub(crate) amount: Money,
    /// Whether that has been paid.
    pub(crate) paid: bool,
}

/// All orders, from JSON as it was sent: text is a table, all else must be a list of objects.
///
/// # Errors
/// They have faults: permanent, each of a table named with its line.
pub(crate) fn read(sent: &RawValue) -> Result<Vec<Order>> {
    if sent.get().starts_with('"') {
        let table: String = serde_json::from_str(sent.get()).or_permanent("the orders")?;
        return read_table(&table);
    }
    serde_json::from_str(sent.get()).or_permanent("the orders are no table and no list of orders")
}

fn read_table(text: &str) -> Result<Vec<Order>> {
    let mut rows = rows(text).into_iter();
    if rows.next().is_none_or(|(_, header)| header != HEADER) {
        let header = HEADER.join(",");
        return Err(Failure::permanent(format!("the orders do not begin with `{header}`")));
    }
    let (mut orders, mut faults) = (Vec::new(), Vec::new());
    for (line, row) in rows {
        match order(row) {
            Ok(order) => orders.push(order),
            Err(fault) => faults.push(format!("line {line}: {fault}")),
        }
    }
    if faults.is_empty() {
        return Ok(orders);
    }
    let more = faults.len().saturating_sub(MAX_FAULTS);
    faults.truncate(MAX_FAULTS);
    if more > 0 {
        faults.push(format!("and {more} more"));
    }
    Err(Failure::permanent(format!("the orders have faults: {}", faults.join("; "))))
}

/// One row as an order, or what is wrong with it.
fn order(row: Vec<String>) -> Result<Order, String> {
    let count = row.len();
    let Ok([order, customer, amount, paid]) = <[String; 4]>::try_from(row) else {
        return Err(format!("{count} fields instead of 4"));
    };
    let paid = match paid.as_str() {
        "yes" => true,
        "no" => false,
        other => return Err(format!("paid is `{other}` instead of `yes` or `no`")),
    };
    Ok(Order { order, customer, amount: amount.parse().map_err(|e| format!("{e}"))?, paid })
}

/// The rows of CSV text (RFC 4180), each with the number of its first line. Empty lines are
/// skipped.
fn rows(text: &str) -> Vec<(usize, Vec<String>)> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut first_line, mut is_quoted) = (1, 1, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\n' {
            line += 1;
        }
        match character {
            '"' if is_quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if is_quoted => is_quoted = false,
            '"' if field.is_empty() => is_quoted = true,
            ',' if !is_quoted => row.push(std::mem::take(&mut field)),
            '\r' if !is_quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !is_quoted => {
                row.push(std::mem::take(&mut field));
                rows.push((first_line, std::mem::take(&mut row)));
                first_line = line;
            }
            other => field.push(other),
        }
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push((first_line, row));
    }
    rows.retain(|(_, row)| row.iter().any(|field| !field.is_empty()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &str) -> Result<Vec<Order>> {
        read_table(&format!("order,customer,amount,paid\n{rows}"))
    }

    #[test]
    fn quotes_commas_and_line_ends_in_fields_are_kept() {
        let orders = table("1,\"Sons, \"\"and\"\"\nDaughters\",2.00,yes\r\n\r\n2,B,3,no").unwrap();
        assert_eq!(orders.len(), 2);
        assert_eq!(orders[0].customer, "Sons, \"and\"\nDaughters");
        assert_eq!((orders[1].amount.to_string().as_str(), orders[1].paid), ("3.00", false));
    }

    #[test]
    fn every_fault_is_named_with_its_line() {
        let message = table("1,\"A\nB\",2.00,yes\n2,B,x,no\n3,C\n4,D,1.00,maybe").unwrap_err();
        assert_eq!(
            message.message(),
            "the orders have faults: line 4: `x` is no amount such as `12.50`; \
             line 5: 2 fields instead of 4; line 6: paid is `maybe` instead of `yes` or `no`"
        );
        let faults = table(&"x\n".repeat(12)).unwrap_err();
        assert!(faults.message().ends_with("line 11: 1 fields instead of 4; and 2 more"));
    }

    #[test]
    fn a_table_without_its_header_is_refused() {
        let failure = read_table("1;A;2.00;yes").unwrap_err();
        assert_eq!(failure.message(), "the orders do not begin with `order,customer,amount,paid`");
    }

    #[test]
    fn a_fault_in_a_list_is_named() {
        let sent = RawValue::from_string(r#"[{"order": "1", "customer": 7}]"#.to_owned());
        let failure = read(&sent.unwrap()).unwrap_err();
        assert!(failure.message().contains("invalid type: integer `7`"), "{failure}");
    }
}
