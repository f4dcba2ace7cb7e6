//! Where `scripts/test` has put what the tests need. It tells by environment variables.

use std::path::PathBuf;
use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// A variable that `scripts/test` exports.
///
/// # Panics
/// It is not set; the message tells the command that starts the servers and sets it.
#[must_use]
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run the tests by `scripts/test`, or start the servers by \
             `scripts/test --servers` and paste what it prints"
        )
    })
}

/// URL of the SQS server, without a path.
#[must_use]
pub fn sqs_url() -> String {
    variable("SQJOBS_TEST_SQS_URL")
}

/// URL of the PostgreSQL database. Each test makes a schema of its own in it.
#[must_use]
pub fn database_url() -> String {
    variable("SQJOBS_TEST_DATABASE_URL")
}

/// The binary `sqjobs-host`.
#[must_use]
pub fn host() -> PathBuf {
    variable("SQJOBS_TEST_HOST").into()
}

/// A compiled guest, such as `adder` or `outcomes`.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let file = PathBuf::from(variable("SQJOBS_TEST_GUESTS")).join(format!("{name}.wasm"));
    assert!(
        file.is_file(),
        "{} is missing: build it by `cargo build --release --target wasm32-wasip2` in guest-examples",
        file.display()
    );
    file
}

/// The Python with the old library, `sqjobs==0.7.1`, in it.
#[must_use]
pub fn old_python() -> PathBuf {
    variable("SQJOBS_TEST_PYTHON").into()
}

/// The Python with the PostgreSQL driver `psycopg` in it.
#[must_use]
pub fn psycopg_python() -> PathBuf {
    variable("SQJOBS_TEST_PSYCOPG").into()
}

/// PHP's command line, with its PostgreSQL driver.
#[must_use]
pub fn php() -> PathBuf {
    variable("SQJOBS_TEST_PHP").into()
}

/// A word that no other test uses: for queues and schemas.
#[must_use]
pub fn unique(word: &str) -> String {
    let suffix: String = std::iter::repeat_with(fastrand::lowercase).take(10).collect();
    format!("{word}_{suffix}")
}

/// Runs what is asynchronous (SQL, the SQS client, the proxy) for tests that are not.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
