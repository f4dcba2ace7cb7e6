//! Path 3, step b: reads a crontab expression. What it means in a time zone is `schedule.rs`.
//!
//! An expression is five fields `minute hour day-of-month month day-of-week`, or one macro. It
//! is read once, into sets of numbers; everything that the syntax does not name is rejected,
//! with the field and what is allowed in it.

use std::fmt;

/// Why an expression is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrontabError {
    /// It has not five fields.
    #[error(
        "`{expression}` has {found} field(s); expected five, `minute hour day-of-month month day-of-week`, or a macro such as @daily{hint}"
    )]
    Fields {
        /// The expression.
        expression: String,
        /// Fields that it has.
        found: usize,
        /// What may have been meant; empty when that is not known.
        hint: &'static str,
    },
    /// It begins with `@` and is no macro.
    #[error("`{0}` is not a macro; expected one of {macros}", macros = macro_names())]
    Macro(String),
    /// A field can't be read.
    #[error("{field}: {reason}; allowed are {allowed}", allowed = field.allowed())]
    Field {
        /// Which field.
        field: Field,
        /// What is wrong with it.
        reason: String,
    },
    /// No day of any year matches.
    #[error(
        "`{0}` can never fire: none of the months has a day of that number; check day-of-month against month"
    )]
    Never(String),
}

/// One of the five fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12, or a name.
    Month,
    /// 0 to 7, or a name; Sunday is 0 and 7.
    DayOfWeek,
}

const FIELDS: [Field; 5] =
    [Field::Minute, Field::Hour, Field::DayOfMonth, Field::Month, Field::DayOfWeek];

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const MACROS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

fn macro_names() -> String {
    MACROS.map(|(name, _)| name).join(" ")
}

impl Field {
    const fn range(self) -> (u8, u8) {
        match self {
            Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::DayOfMonth => (1, 31),
            Self::Month => (1, 12),
            Self::DayOfWeek => (0, 7),
        }
    }

    /// Names, of which the first stands for this number.
    const fn names(self) -> (&'static [&'static str], u8) {
        match self {
            Self::Month => (&MONTHS, 1),
            Self::DayOfWeek => (&WEEKDAYS, 0),
            _ => (&[], 0),
        }
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Minute => "0-59, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`",
            Self::Hour => "0-23, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`",
            Self::DayOfMonth => "1-31, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`",
            Self::Month => "1-12 or jan-dec, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`",
            Self::DayOfWeek => {
                "0-7 (Sunday is 0 and 7) or sun-sat, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`"
            }
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day-of-month",
            Self::Month => "month",
            Self::DayOfWeek => "day-of-week",
        })
    }
}

/// A crontab expression, read. Each set has bit `n` for the value `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crontab {
    pub(crate) minutes: u64,
    pub(crate) hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Whether a day must match day-of-month and day-of-week, or one of them.
    needs_both: bool,
    /// Whether minute or hour begins with `*`: such a job follows the clock through a changed
    /// hour, where any other is moved or fires once.
    pub(crate) is_wildcard: bool,
}

impl Crontab {
    /// Reads an expression.
    ///
    /// # Errors
    /// The field that can't be read and what is allowed there, or that no day ever matches.
    pub(crate) fn parse(expression: &str) -> Result<Self, CrontabError> {
        let text = expression.trim_matches([' ', '\t']);
        let text = match text.strip_prefix('@') {
            None => text,
            Some(_) => match MACROS.iter().find(|(name, _)| *name == text) {
                Some((_, fields)) => fields,
                None => return Err(CrontabError::Macro(text.to_owned())),
            },
        };
        let parts: Vec<&str> = text.split([' ', '\t']).filter(|part| !part.is_empty()).collect();
        let Ok(parts) = <[&str; 5]>::try_from(parts.as_slice()) else {
            return Err(CrontabError::Fields {
                expression: expression.to_owned(),
                found: parts.len(),
                hint: hint(&parts),
            });
        };
        let mut sets = [0u64; 5];
        for ((set, field), part) in sets.iter_mut().zip(FIELDS).zip(parts) {
            *set =
                read_field(field, part).map_err(|reason| CrontabError::Field { field, reason })?;
        }
        let [minutes, hours, days, months, weekdays] = sets;
        let begins_with_star = parts.map(|part| part.starts_with('*'));
        let crontab = Self {
            minutes,
            hours,
            days,
            months,
            // Sunday is 0 and 7.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            needs_both: begins_with_star[2] || begins_with_star[4],
            is_wildcard: begins_with_star[0] || begins_with_star[1],
        };
        if crontab.can_fire() { Ok(crontab) } else { Err(CrontabError::Never(text.to_owned())) }
    }

    /// Whether a day matches. `weekday` counts from Sunday, 0.
    pub(crate) fn matches_day(&self, month: u32, day: u32, weekday: u32) -> bool {
        let has = |set: u64, value: u32| set >> value & 1 == 1;
        let (by_day, by_weekday) = (has(self.days, day), has(self.weekdays, weekday));
        has(self.months, month)
            && if self.needs_both { by_day && by_weekday } else { by_day || by_weekday }
    }

    /// Whether some day matches. Each date of the calendar falls on every weekday within 400
    /// years, so a day-of-week alone rules nothing out.
    fn can_fire(&self) -> bool {
        const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        !self.needs_both
            || (1..).zip(LONGEST).any(|(month, longest)| {
                self.months >> month & 1 == 1 && self.days & ((2 << longest) - 1) != 0
            })
    }
}

/// What people write where five fields are expected.
fn hint(parts: &[&str]) -> &'static str {
    if parts.iter().any(|part| part.contains("TZ=")) {
        "; the time zone is given beside the expression"
    } else if parts.len() == 6 || parts.len() == 7 {
        "; there is no field for seconds or years"
    } else {
        ""
    }
}

/// Reads one field into the set of its values.
fn read_field(field: Field, text: &str) -> Result<u64, String> {
    let mut set = 0;
    for item in text.split(',') {
        if item.is_empty() {
            return Err(format!("`{text}` has an empty item"));
        }
        set |= read_item(field, item)?;
    }
    Ok(set)
}

/// Reads `*`, a value or a range, with a step after `*` or a range.
fn read_item(field: Field, item: &str) -> Result<u64, String> {
    let (base, step) = match item.split_once('/') {
        None => (item, None),
        Some((base, step)) => (base, Some(read_step(item, step)?)),
    };
    let (first, last) = if base == "*" {
        field.range()
    } else if let Some((first, last)) = base.split_once('-') {
        (read_value(field, item, first)?, read_value(field, item, last)?)
    } else if step.is_some() {
        return Err(format!("`{item}` has a step after a single value"));
    } else {
        let value = read_value(field, item, base)?;
        (value, value)
    };
    if first > last {
        let remedy = match base.rsplit_once('-') {
            Some((begin, end)) if end.eq_ignore_ascii_case("sun") && field == Field::DayOfWeek => {
                format!(" (at the end of a range Sunday is 7: `{begin}-7`)")
            }
            _ => String::new(),
        };
        return Err(format!("the range `{item}` runs backwards{remedy}"));
    }
    let step = step.unwrap_or(1);
    Ok((first..=last).step_by(step).fold(0, |set, value| set | 1 << value))
}

fn read_step(item: &str, text: &str) -> Result<usize, String> {
    let Some(digits) = digits(text) else {
        return Err(format!("`{item}` has no whole number as its step"));
    };
    if digits.is_empty() {
        return Err(format!("`{item}` has the step 0, and a step is at least 1"));
    }
    // One that is larger than any range leaves the first value, however large it is.
    Ok(if digits.len() > 2 { 100 } else { digits.parse().unwrap_or(100) })
}

/// A number or a name as the number that it means.
fn read_value(field: Field, item: &str, text: &str) -> Result<u8, String> {
    let (names, first) = field.names();
    if let Some(index) = names.iter().position(|name| text.eq_ignore_ascii_case(name)) {
        return Ok(first + u8::try_from(index).unwrap_or_default());
    }
    let shown = if item == text { format!("`{text}`") } else { format!("`{text}` in `{item}`") };
    let Some(digits) = digits(text) else {
        let what = if text.is_empty() { "an empty value" } else { "no value" };
        return Err(if text.is_empty() {
            format!("`{item}` has {what}")
        } else {
            format!("{shown} is {what} of this field")
        });
    };
    let (least, most) = field.range();
    let value = if digits.len() > 2 { u8::MAX } else { digits.parse().unwrap_or(0) };
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{shown} is out of range"))
    }
}

/// The digits of a number without its leading zeros; `None` when it is no number.
fn digits(text: &str) -> Option<&str> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[u32]) -> u64 {
        values.iter().fold(0, |set, value| set | 1 << value)
    }

    fn read(expression: &str) -> Crontab {
        Crontab::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    #[test]
    fn lists_ranges_steps_and_names_are_read() {
        let crontab = read("\t5-55/25,007  */12\t1-7/2 Jan,jUL sun,FRI-7 ");
        assert_eq!(crontab.minutes, set(&[5, 7, 30, 55]));
        assert_eq!(crontab.hours, set(&[0, 12]));
        assert_eq!(crontab.days, set(&[1, 3, 5, 7]));
        assert_eq!(crontab.months, set(&[1, 7]));
        assert_eq!(crontab.weekdays, set(&[0, 5, 6]));
    }

    #[test]
    fn a_step_larger_than_the_range_leaves_its_first_value() {
        assert_eq!(read("*/60 5-9/99999999999999999999 * * *").minutes, 1);
        assert_eq!(read("*/60 5-9/99999999999999999999 * * *").hours, set(&[5]));
    }

    #[test]
    fn both_days_must_match_only_if_one_of_them_begins_with_a_star() {
        let (tuesday, friday) = (2, 5);
        for (expression, thirteenth_tuesday, twelfth_friday, thirteenth_friday) in [
            ("0 0 13 * 5", true, true, true),
            ("0 0 */12 * 5", false, false, true),
            ("0 0 13 * *", true, false, true),
            ("0 0 13 * */5", false, false, true),
            ("0 0 13,* * 5", true, true, true),
        ] {
            let crontab = read(expression);
            assert_eq!(crontab.matches_day(6, 13, tuesday), thirteenth_tuesday, "{expression}");
            assert_eq!(crontab.matches_day(6, 12, friday), twelfth_friday, "{expression}");
            assert_eq!(crontab.matches_day(6, 13, friday), thirteenth_friday, "{expression}");
        }
    }

    #[test]
    fn a_wildcard_job_has_a_star_at_the_begin_of_minute_or_hour() {
        for expression in ["*/5 2 * * *", "0 * * * *", "*,5 2 * * *", "@hourly"] {
            assert!(read(expression).is_wildcard, "{expression}");
        }
        for expression in ["30 2 * * *", "0 0-23 * * *", "5,* 2 * * *", "@daily"] {
            assert!(!read(expression).is_wildcard, "{expression}");
        }
    }

    #[test]
    fn macros_mean_their_fields() {
        for (name, fields) in MACROS {
            assert_eq!(read(name), read(fields), "{name}");
        }
    }

    #[test]
    fn what_the_syntax_does_not_name_is_rejected() {
        for expression in [
            "",
            " ",
            "*",
            "* * * *",
            "* * * * * *",
            "0 0 * * * 2027",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * 32 * *",
            "* * * 0 *",
            "* * * 13 *",
            "* * * * 8",
            "-1 * * * *",
            "+1 * * * *",
            "1.5 * * * *",
            "1- * * * *",
            "-5 * * * *",
            "1-2-3 * * * *",
            ", * * * *",
            "1, * * * *",
            ",1 * * * *",
            "1,,2 * * * *",
            "*/0 * * * *",
            "*/00 * * * *",
            "*/ * * * *",
            "/5 * * * *",
            "*/-1 * * * *",
            "*/2/3 * * * *",
            "*/a * * * *",
            "5/10 * * * *",
            "30-10 * * * *",
            "** * * * *",
            "*-5 * * * *",
            "5-* * * * *",
            "* * * january *",
            "* * * * sunday",
            "* * * mon *",
            "* * * * jan",
            "jan * * * *",
            "* * * * fri-mon",
            "* * * * fri/2",
            "* * * * L",
            "* * L * *",
            "* * 15W * *",
            "* * * * 5#2",
            "* * ? * *",
            "H * * * *",
            "~ * * * *",
            "0~9 * * * *",
            "@reboot",
            "@every 1h",
            "@Daily",
            "@daily @daily",
            "@daily 5",
            "@",
            "CRON_TZ=UTC 0 0 * * *",
            "TZ=UTC @daily",
            "0 0 * * * UTC",
            "0 0 30 2 *",
            "0 0 31 4,6,9,11 *",
            "0 0 31 2 */2",
            "0 0 */30,30 2 * *",
            "0\u{a0}0 * * *",
            "0 0 * * *\n",
            "٣ * * * *",
            "0x5 * * * *",
            "256 * * * *",
            "65536 * * * *",
            "4294967296 * * * *",
            "18446744073709551616 * * * *",
        ] {
            assert!(Crontab::parse(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn an_error_names_the_field_and_says_what_is_allowed() {
        let error = |expression| Crontab::parse(expression).unwrap_err().to_string();
        assert_eq!(
            error("0 25 * * *"),
            "hour: `25` is out of range; allowed are 0-23, ranges `a-b`, `*`, and steps `*/n` and `a-b/n`"
        );
        assert!(error("0 0 * * sat-sun").contains("`sat-7`"));
        assert!(error("0 0 0 * * *").contains("no field for seconds"));
        assert!(error("TZ=UTC 0 0 * * *").contains("beside the expression"));
        assert!(error("@often").contains("@daily"));
        assert!(error("0 0 30 2 *").contains("never"));
    }

    #[test]
    fn what_may_fire_once_in_many_years_is_taken() {
        for expression in ["0 0 29 2 *", "0 0 29 2 */7", "0 0 30 2 1", "0 0 31 2,1 *"] {
            let _ = read(expression);
        }
    }
}
