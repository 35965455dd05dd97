//! A client that sends whatever it is told to, and reads what comes back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Only a daemon that hangs takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a limit");
    stream
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    ask(address, "GET", path)
}

pub fn ask(address: SocketAddr, method: &str, path: &str) -> Reply {
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let bytes = exchange(address, request.as_bytes());
    parse(&bytes)
        .unwrap_or_else(|| panic!("no reply to {method} {path}: {:?}", String::from_utf8_lossy(&bytes)))
}

/// Sends bytes and reads until the daemon closes.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    send(&mut stream, bytes);
    read(&mut stream)
}

/// The same, and says after the bytes that no more will come.
pub fn exchange_at_once(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    send(&mut stream, bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    read(&mut stream)
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    // The daemon may refuse in the middle.
    let _ = stream.write_all(bytes);
}

/// An error is the end, too: hostile clients get one.
fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer in {PATIENCE:?}"),
        Ok(_) | Err(_) => answer,
    }
}

pub fn parse(bytes: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let code = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Some(Reply { code, headers: headers.collect(), body: body.to_owned() })
}
