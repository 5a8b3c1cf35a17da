//! The metrics over HTTP, for a scraper on this host. It answers `GET /metrics`, and ends the connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::api::switchboard::Switchboard;

/// Connections at a time; more are closed at once. Lower: a second scraper is turned away. Higher: what strangers on this host can hold.
const MAX_CONNECTIONS: usize = 8;
/// Bytes of a request's head. Lower: scrapers send a few headers of some hundred bytes. Higher: memory of those who send without end.
const MAX_HEAD_BYTES: usize = 4096;
/// How long a request and its answer may take in all. Lower: a busy worker's answer is missed. Higher: who says nothing keeps a place.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves metrics on a thread of its own until dropped.
pub(crate) struct Listener {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// # Errors
    /// When the address cannot be had.
    pub(crate) fn start(board: Arc<Switchboard>, listen: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("pilot-metrics".into()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    // A stop, or nobody who could say so.
                    _ = stopped => {}
                    () = serve(listener, board) => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

async fn serve(listener: TcpListener, board: Arc<Switchboard>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the applications' sessions give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let board = Arc::clone(&board);
        tokio::spawn(async move {
            // Who is not done by then is left.
            let _ = timeout(REQUEST_TIMEOUT, answer(stream, &board)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, board: &Switchboard) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
        let mut bytes = [0; 512];
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        head.extend_from_slice(&bytes[..length]);
    }
    let (status, more, body) = match wanted(&head) {
        Ok(()) => match board.inspect().await {
            Some([stats, peers]) => ("200 OK", "", super::text(&stats, &peers["peers"])),
            None => ("503 Service Unavailable", "", "the node stops\n".to_owned()),
        },
        Err((status, more)) => (status, more, format!("{status}: GET /metrics is what there is\n")),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Whether a request is for the metrics; else the status that it is answered with, and a header.
fn wanted(head: &[u8]) -> Result<(), (&'static str, &'static str)> {
    let bad = ("400 Bad Request", "");
    let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Err(("431 Request Header Fields Too Large", ""));
    };
    let head = std::str::from_utf8(&head[..end]).map_err(|_| bad)?;
    let mut line = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (line.next(), line.next(), line.next(), line.next()) else {
        return Err(bad);
    };
    if !version.starts_with("HTTP/1.") {
        return Err(bad);
    }
    if method != "GET" {
        return Err(("405 Method Not Allowed", "Allow: GET\r\n"));
    }
    // Scrapers may be configured with parameters, of which there are none here.
    match target.split('?').next() {
        Some("/metrics") => Ok(()),
        _ => Err(("404 Not Found", "")),
    }
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn requests_are_for_the_metrics_or_refused() {
        let status = |head: &str| wanted(head.as_bytes()).err().map_or("200", |(status, _)| &status[..3]);
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), "200");
        assert_eq!(status("GET /metrics?x=y HTTP/1.0\r\n\r\n"), "200");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "405");
        for bad in ["\r\n\r\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n", "GET /metrics SPDY/3\r\n\r\n", "a b c d\r\n\r\n"]
        {
            assert_eq!(status(bad), "400", "{bad:?}");
        }
        assert_eq!(status(&"x".repeat(4096)), "431");
        assert_eq!(wanted(b"GET \xff HTTP/1.1\r\n\r\n").err().map(|it| it.0), Some("400 Bad Request"));
    }
}
