//! One application at the socket: frames in, frames out.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Users, Who, access};
use crate::api::access::Access;
use crate::api::audit::Audit;
use crate::api::codec::{Frame as _, Unreadable};
use crate::api::frames::{self, KEPT_BYTES, Reader, WRITE_BYTES};
use crate::api::limits::{APPLICATION_NAME_CHARS, CLIENT_CREDIT_BYTES, HELLO_TIMEOUT, INBOX_FRAMES, MAX_REQUESTS};
use crate::api::outbox::Delivery;
use crate::api::protocol::{Code, Error, Request, SESSION, ToApplication, ToNode, cost};
use crate::api::switchboard::{Client, Switchboard};

/// How long the last words to an application may take: one that does not read does not get them.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(100);
/// How soon a session whose frames wait for a worker looks again. Lower: it looks for nothing.
const INBOX_POLL: Duration = Duration::from_millis(1);

/// What both directions know.
#[derive(Default)]
struct Accounts {
    /// Requests without an answer (L1.3).
    requests: AtomicUsize,
    /// Bytes of the application's credit that are spent (L5.3).
    spent: AtomicU64,
}

/// Serves an application until it is gone.
pub(super) async fn run(
    stream: UnixStream,
    board: &std::sync::Arc<Switchboard>,
    who: Who,
    mut users: watch::Receiver<Users>,
) {
    let allowed = access(who.uid, &users.borrow_and_update());
    let rights = match allowed {
        Ok(rights) => rights,
        Err(error) => {
            board.audit(Audit::ApplicationRefused { uid: who.uid, why: error.words.clone() });
            return refuse(stream, error);
        }
    };
    let (mut reader, write) = frames::split(stream);
    // L1.2: without hello, there is nothing for it at any worker.
    let (hello, name) = match timeout(HELLO_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(ToNode::Request { request, what: Request::Hello { version, name } }))) => {
            (ToNode::Request { request, what: Request::Hello { version, name: None } }, name)
        }
        Ok(Ok(None)) => return,
        Ok(Ok(Some(_))) => return last_words(write, Error::malformed("the first frame is a request `hello`")).await,
        Ok(Err(unreadable)) => return last_words(write, unreadable.error).await,
        Err(_) => {
            let words = format!(
                "nothing was said for {} seconds: the first frame is a request `hello`",
                HELLO_TIMEOUT.as_secs()
            );
            return last_words(write, Error::new(Code::TimedOut, words)).await;
        }
    };
    let (client, delivery) = board.attach(rights.clone());
    let application = client.id.0;
    let name = name.map(|name| name.chars().take(APPLICATION_NAME_CHARS).collect());
    board.audit(Audit::ApplicationCame { application, uid: who.uid, pid: who.pid, name });
    let accounts = Accounts::default();
    accounts.requests.fetch_add(1, Ordering::Relaxed);
    client.handle(hello);
    tokio::select! {
        () = read_all(&mut reader, &client, &accounts) => {}
        () = write_all(write, delivery, &accounts) => {}
        () = changed_rights(who, &rights, &mut users, &client) => {}
    }
    drop(client);
    board.audit(Audit::ApplicationWent { application });
}

/// Has the session end when its user's rights are others. Never ends itself: the last words are still to be written.
async fn changed_rights(who: Who, rights: &Access, users: &mut watch::Receiver<Users>, client: &Client) {
    while users.changed().await.is_ok() {
        if access(who.uid, &users.borrow_and_update()).ok().as_ref() != Some(rights) {
            let words = format!("the rights of user {} have changed: attach again for those there are", who.uid);
            client.outbox.end(Error::new(Code::NotAllowed, words));
        }
    }
    std::future::pending().await
}

/// Tells an application that it is not served. The socket takes so little at once, or it is lost.
pub(super) fn refuse(stream: UnixStream, error: Error) {
    let mut bytes = Vec::new();
    ToApplication::Error { request: SESSION.0, error }.encode(&mut bytes);
    let _ = stream.try_write(&bytes);
}

async fn last_words(mut write: OwnedWriteHalf, error: Error) {
    let mut bytes = Vec::new();
    ToApplication::Error { request: SESSION.0, error }.encode(&mut bytes);
    let _ = timeout(LAST_WORDS, write.write_all(&bytes)).await;
}

/// Hands on what the application says. Ends when the application is gone.
async fn read_all(reader: &mut Reader<ToNode>, client: &Client, accounts: &Accounts) {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(Unreadable { request: 0, error }) => {
                // L1.1: the other direction ends with these words, and with it the session.
                client.outbox.end(error);
                return std::future::pending().await;
            }
            Err(Unreadable { request, error }) => {
                accounts.requests.fetch_add(1, Ordering::Relaxed);
                client.outbox.put(ToApplication::Error { request, error });
                continue;
            }
        };
        match &frame {
            // L1.3: counted here, and done with when it is answered.
            ToNode::Request { request, .. } if accounts.requests.fetch_add(1, Ordering::Relaxed) >= MAX_REQUESTS => {
                let error = Error::new(Code::Busy, format!("{MAX_REQUESTS} requests wait for their answers"));
                client.outbox.put(ToApplication::Error { request: *request, error });
                continue;
            }
            ToNode::Message(_, body) | ToNode::Data(_, body) => {
                let cost = u64::from(cost(body));
                if accounts.spent.fetch_add(cost, Ordering::Relaxed) + cost > CLIENT_CREDIT_BYTES.into() {
                    let words = format!("the session has credit for {CLIENT_CREDIT_BYTES} bytes, and they are spent");
                    client.outbox.end(Error::new(Code::Credit, words));
                    return std::future::pending().await;
                }
            }
            _ => {}
        }
        client.handle(frame);
        while client.outbox.inbox_frames() >= INBOX_FRAMES {
            sleep(INBOX_POLL).await;
        }
    }
}

/// Writes what there is for the application. Ends when the session is over or the socket is.
async fn write_all(mut write: OwnedWriteHalf, mut delivery: Delivery, accounts: &Accounts) {
    let mut bytes = Vec::new();
    while let Some(first) = delivery.next().await {
        let mut next = Some(first);
        let mut is_last = false;
        while let Some(frame) = next {
            match &frame {
                ToApplication::Error { request: 0, .. } => is_last = true,
                ToApplication::Result { .. } | ToApplication::Error { .. } => {
                    accounts.requests.fetch_sub(1, Ordering::Relaxed);
                }
                ToApplication::Credit(SESSION, bytes) => {
                    _ = accounts.spent.fetch_sub((*bytes).into(), Ordering::Relaxed)
                }
                _ => {}
            }
            frame.encode(&mut bytes);
            next = if is_last || bytes.len() >= WRITE_BYTES { None } else { delivery.try_next() };
        }
        if is_last {
            let _ = timeout(LAST_WORDS, write.write_all(&bytes)).await;
            return;
        }
        if write.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
    }
}
