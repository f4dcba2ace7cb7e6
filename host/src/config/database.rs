//! Which database: its URL, as a file may name it, with the password that may come from a file.

use std::path::{Path, PathBuf};

use super::DATABASE_FILE;
use super::read::Reader;

/// The database that was chosen, whatever the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DatabaseChoice {
    Sqlite(PathBuf),
    Postgres { url: url::Url, schema: String },
}

impl DatabaseChoice {
    /// Reads the settings; a faulty one is noted, and the default taken.
    pub(super) fn read(reader: &mut Reader<'_>, data_dir: &Path) -> Self {
        let default = DatabaseChoice::Sqlite(data_dir.join(DATABASE_FILE));
        let schema = reader.text("schema");
        let password = reader.secret_file("database-password-file");
        let Some(found) = reader.text("database") else { return default };
        let shown = || label_of(&found.value);
        if let Some(path) = found.value.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = path.split('?').next().unwrap_or_default();
            if path.is_empty() || path == ":memory:" {
                let fault = "an SQLite database must be a file, as in `sqlite:PATH`: all processes share it";
                reader.fault(&found.origin, fault);
                return default;
            }
            return DatabaseChoice::Sqlite(found.base.join(path));
        }
        let url = match url::Url::parse(&found.value) {
            Ok(url) if is_postgres_url(&found.value) && hides_nothing(&found.value) => url,
            Ok(_) if is_postgres_url(&found.value) => {
                let fault = format!(
                    "write `@` and `/` in user and password as `%40` and `%2F`, or give the password in --database-password-file; found `{}`",
                    shown()
                );
                reader.fault(&found.origin, &fault);
                return default;
            }
            _ => {
                let fault = format!(
                    "expected `sqlite:PATH` or `postgres://USER@HOST/DATABASE`, found `{}`",
                    shown()
                );
                reader.fault(&found.origin, &fault);
                return default;
            }
        };
        let mut url = url;
        if let Some(password) = password
            && url.set_password(Some(&password)).is_err()
        {
            reader.fault(&found.origin, "a URL without a host can't take a password");
        }
        let schema = match schema {
            Some(name) if name.value.is_empty() || name.value.len() > 63 => {
                reader.fault(&name.origin, "expected a name of 1 to 63 bytes");
                "sqjobs".to_owned()
            }
            Some(name) => name.value,
            None => "sqjobs".to_owned(),
        };
        DatabaseChoice::Postgres { url, schema }
    }
}

fn is_postgres_url(text: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Whether a URL's user and password end where they seem to. With a `/` or `@` written as it is
/// in a password, what follows would be taken for host and path, and shown as such.
fn hides_nothing(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    authority.matches('@').count() <= 1 && !path.contains('@')
}

/// A database URL as people may see it, also when it is not well formed: whatever stands
/// before the last `@` may be a password.
fn label_of(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme && !url[..scheme].contains([':', '@']) => {
            format!("{}://…{}", &url[..scheme], &url[at..])
        }
        (_, Some(at)) => format!("…{}", &url[at..]),
        _ => url.to_owned(),
    }
}
