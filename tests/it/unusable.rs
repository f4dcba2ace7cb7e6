//! Servers and folders that are there and can't be used: told in a sentence, with a remedy.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use sqlx::Connection as _;
use support::servers::RUNTIME;
use support::{Output, Project};

/// How a server that is no use behaves.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Refuses every password.
    Refuses,
    /// Takes connections and never says a word.
    Hangs,
    /// Ends each connection as soon as it was greeted.
    HangsUp,
}

/// A server that speaks as much of PostgreSQL's protocol as its manner asks for, until the tests
/// end. Returns where it listens.
///
/// Source: PostgreSQL documentation, "Message Formats".
fn useless_postgres(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            std::thread::spawn(move || {
                let _ = greet(client.unwrap(), manner);
            });
        }
    });
    address
}

fn greet(mut client: TcpStream, manner: Manner) -> std::io::Result<()> {
    let mut message = [0; 1024];
    let mut read = client.read(&mut message)?;
    if let Manner::Hangs = manner {
        while read > 0 {
            read = client.read(&mut message)?;
        }
        return Ok(());
    }
    if read == 8 {
        // It asks for TLS.
        client.write_all(b"N")?;
        let _ = client.read(&mut message)?;
    }
    if let Manner::HangsUp = manner {
        return Ok(());
    }
    client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3])?; // a password, please
    let _ = client.read(&mut message)?;
    let fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0";
    client.write_all(b"E")?;
    client.write_all(&u32::try_from(fields.len() + 4).unwrap().to_be_bytes())?;
    client.write_all(fields)
}

#[test]
fn a_postgres_that_refuses_hangs_or_hangs_up_is_told_with_a_remedy() {
    for (manner, words) in [
        (Manner::Refuses, &["password", "PGPASSWORD", "SQJOBS_DATABASE_PASSWORD_FILE"][..]),
        (Manner::Hangs, &["no answer within", "host and port"]),
        (Manner::HangsUp, &["postgres://", "--database"]),
    ] {
        let project = Project::with_guests(&["adder"]);
        let database = format!("postgres://somebody:hunter2secret@{}/db", useless_postgres(manner));
        for command in [&["list"][..], &["worker", "q", "--log-level", "warn"]] {
            let output = project.run(&[command, &["--database", &database]].concat()).exits(1);
            output.is_a_sentence().says(words);
            assert!(!output.stderr.contains("hunter2secret"), "{manner:?}: {output}");
        }
    }
}

/// Written as they should not be, passwords are shown no more than otherwise.
#[test]
fn a_url_that_hides_a_password_badly_is_refused_without_showing_it() {
    let project = Project::with_guests(&["adder"]);
    for database in [
        "postgres:u:s3cret@h",
        "postgres:/u:s3cret@h/d",
        "postgres//u:s3cret@h/d",
        "u:s3cret@h/d",
        "postgres://u:p@s3cret@127.0.0.1:1/d",
        "postgres://u:p@x/s3cret@127.0.0.1:1/d",
        "mysql://u:s3cret@h/d",
    ] {
        for command in [&["list"][..], &["worker", "q"]] {
            let output = project.run(&[command, &["--database", database]].concat()).exits(2);
            assert!(!output.stderr.contains("s3cret"), "{database}: {output}");
            output.says(&["postgres://"]);
        }
    }
}

#[test]
fn an_add_that_can_t_reach_sqs_says_that_the_job_waits() {
    let mut project = Project::with_guests(&["adder"]);
    project.set("SQJOBS_BROKER", "sqs");
    project.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    for (name, value) in support::sqs::CREDENTIALS {
        project.set(name, value);
    }
    let output = project.run(&["add", "adder_job", "1", "--queue", "q"]).ok();
    output.says(&["waits in the database", "127.0.0.1:1"]);
    let row = project.run(&["status", "--output", "json", output.line()]).ok().json();
    assert_eq!(row.text("status"), "PENDING");
}

/// Longer than a busy timeout, from before the worker starts.
#[test]
fn a_database_that_another_program_holds_is_told_with_a_remedy() {
    let project = Project::with_guests(&["adder"]);
    let _ = project.run(&["migrate"]).ok();
    let url = format!("sqlite:{}", project.folder().join(".sqjobs/sqjobs.db").display());
    let mut holder = RUNTIME.block_on(sqlx::SqliteConnection::connect(&url)).unwrap();
    RUNTIME.block_on(sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut holder)).unwrap();
    for command in [&["worker", "q"][..], &["add", "adder_job", "1"]] {
        let output = project.run(&[command, &["--log-level", "error"]].concat()).exits(1);
        output.is_a_sentence().says(&["sqjobs.db", "another program holds it", "stop that"]);
    }
}

/// Root may read everything, so the tests' own root gives that up first.
#[test]
fn a_folder_without_permission_is_told_with_a_remedy() {
    let project = Project::with_guests(&["adder"]);
    let _ = project.run(&["migrate"]).ok();
    for (folder, command, words) in [
        ("jobs", &["worker", "q"][..], &["jobs", "ermission denied"][..]),
        (".sqjobs", &["worker", "q"], &[".sqjobs", "read and written", "--data-dir"]),
        (".sqjobs", &["list"], &[".sqjobs", "read and written", "--data-dir"]),
    ] {
        let path = project.folder().join(folder);
        let set_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let command = [command, &["--log-level", "warn"]].concat();
        set_mode(0o000);
        let output = if std::fs::read_dir(&path).is_ok() {
            let mut mere = std::process::Command::new("setpriv");
            let told = project.command(&command);
            mere.args(["--bounding-set", "-dac_override,-dac_read_search", "--"])
                .arg(told.get_program())
                .args(told.get_args())
                .current_dir(project.folder())
                .env_clear();
            Output::of(mere)
        } else {
            project.run(&command)
        };
        set_mode(0o700);
        output.exits(1).is_a_sentence().says(words);
    }
}
