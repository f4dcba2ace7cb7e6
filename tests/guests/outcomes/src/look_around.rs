//! A job that tries everything it was not granted.

use std::fmt::Display;
use std::io::Write;
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::{env, fs};

use sqjobs_sdk::prelude::*;

/// `look_around [ADDRESS]`: returns what it could see and do; each field is empty, or an error,
/// in a sandbox that grants nothing. The address is one where something listens.
#[derive(Default)]
pub(crate) struct LookAround;

/// What was seen. An error is the text `error: ...`.
#[derive(Serialize)]
struct Seen {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    working_folder: String,
    root_folder: String,
    passwd: String,
    written_file: String,
    tcp: String,
    listener: String,
    udp: String,
    name_lookup: String,
    standard_input: String,
}

impl Job for LookAround {
    const NAME: &str = "look_around";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let address: Option<String> = call.arg(0)?;
        let address = address.as_deref().unwrap_or("127.0.0.1:80");
        Ok(Seen {
            arguments: env::args_os().map(|text| text.to_string_lossy().into_owned()).collect(),
            variables: env::vars_os()
                .map(|(key, value)| {
                    (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
                })
                .collect(),
            working_folder: seen(env::current_dir().and_then(fs::read_dir).map(names)),
            root_folder: seen(fs::read_dir("/").map(names)),
            passwd: seen(fs::read_to_string("/etc/passwd")),
            written_file: seen(
                fs::File::create("/tmp/sqjobs-look-around")
                    .and_then(|mut file| file.write_all(b"x"))
                    .map(|()| "written"),
            ),
            tcp: seen(TcpStream::connect(address).map(|_| "connected")),
            listener: seen(TcpListener::bind("127.0.0.1:0").map(|_| "bound")),
            udp: seen(
                UdpSocket::bind("127.0.0.1:0")
                    .and_then(|socket| socket.send_to(b"x", address))
                    .map(|bytes| format!("sent {bytes}")),
            ),
            name_lookup: seen(
                ("localhost", 80)
                    .to_socket_addrs()
                    .map(|found| found.map(|address| address.to_string()).collect::<String>()),
            ),
            standard_input: seen(std::io::read_to_string(std::io::stdin())),
        })
    }
}

fn names(folder: fs::ReadDir) -> String {
    let paths: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    format!("{paths:?}")
}

fn seen<T: Display>(result: std::io::Result<T>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => format!("error: {error}"),
    }
}
