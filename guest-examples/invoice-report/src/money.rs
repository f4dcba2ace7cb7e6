//! Amounts of money, exact to the cent.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount in cents; written, and sent as JSON, with two decimals: `"12.50"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Money(i128);

/// Text that is no amount of money.
#[derive(Debug)]
pub(crate) struct NoMoney(String);

impl FromStr for Money {
    type Err = NoMoney;

    fn from_str(text: &str) -> Result<Self, NoMoney> {
        let fault = || NoMoney(text.to_owned());
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        let (whole, cents) = digits.split_once('.').unwrap_or((digits, "00"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        // 18 digits a row, so that no sum of rows that fit in a message can overflow.
        if !is_number(whole) || !is_number(cents) || whole.len() > 18 || cents.len() != 2 {
            return Err(fault());
        }
        let cents: i128 = format!("{whole}{cents}").parse().map_err(|_| fault())?;
        Ok(Self(sign * cents))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.map(|amount| amount.0).sum())
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for NoMoney {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no amount such as `12.50`", self.0)
    }
}

impl std::error::Error for NoMoney {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_to_the_cent() {
        for text in ["0.00", "12.50", "-0.05", "999999999999999999.99"] {
            assert_eq!(text.parse::<Money>().unwrap().to_string(), text);
        }
        assert_eq!("12".parse::<Money>().unwrap().to_string(), "12.00");
        for text in ["", ".50", "1.5", "1,50", "1.234", "+1", "--1", "1e3", "1000000000000000000"] {
            assert!(text.parse::<Money>().is_err(), "{text}");
        }
    }
}
