//! quinn-proto at both ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::BytesMut;
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamEvent, StreamId, TransportConfig,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::MAX_DATAGRAM;

/// Packets for which there is one ack, as Pilot has it here.
pub(crate) const RARE_ACKS: u32 = 8;

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    stream: Option<StreamId>,
}

pub(crate) struct Ends {
    ends: [End; 2],
    now: Instant,
    /// Under way from each end.
    wire: [Vec<(BytesMut, Option<EcnCodepoint>)>; 2],
    buffer: Vec<u8>,
}

const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 4242),
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 4242),
];

impl Ends {
    /// `rare_acks`: one for [`RARE_ACKS`] packets.
    pub(crate) fn new(rare_acks: bool) -> anyhow::Result<Self> {
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let certificate = CertificateDer::from(certified.cert);
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let mut transport = TransportConfig::default();
        transport.initial_mtu(MAX_DATAGRAM).mtu_discovery_config(None);
        if rare_acks {
            let mut acks = AckFrequencyConfig::default();
            // So many are not acked at once.
            acks.ack_eliciting_threshold((RARE_ACKS - 1).into());
            transport.ack_frequency_config(Some(acks));
        }
        let transport = Arc::new(transport);
        let mut server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
        server.transport_config(Arc::clone(&transport));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
        client.transport_config(transport);
        let end = |server: Option<Arc<ServerConfig>>| End {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), server, true, Some([1; 32])),
            connection: None,
            stream: None,
        };
        let now = Instant::now();
        let mut ends = [end(None), end(Some(Arc::new(server)))];
        ends[0].connection = Some(ends[0].endpoint.connect(now, client, ADDRESSES[1], "localhost")?);
        let mut it = Self { ends, now, wire: Default::default(), buffer: Vec::with_capacity(2048) };
        it.settle();
        let (_, connection) = it.ends[0].connection.as_mut().context("it was connected")?;
        let stream = connection.streams().open(Dir::Bi).context("the first stream")?;
        it.ends[0].stream = Some(stream);
        connection.send_stream(stream).write(b"first")?;
        it.settle();
        Ok(it)
    }

    /// Until nothing is under way.
    fn settle(&mut self) {
        use crate::Pair as _;
        while self.flush(0) + self.flush(1) > 0 {
            self.receive(1);
            self.receive(0);
        }
    }

    /// What a driver does with an event of the endpoint.
    fn on_datagram(&mut self, end: usize, event: DatagramEvent) {
        let End { endpoint, connection, .. } = &mut self.ends[end];
        match event {
            DatagramEvent::ConnectionEvent(_, event) => {
                if let Some((_, connection)) = connection {
                    connection.handle_event(event);
                }
            }
            DatagramEvent::NewConnection(incoming) => {
                self.buffer.clear();
                *connection = endpoint.accept(incoming, self.now, &mut self.buffer, None).ok();
            }
            DatagramEvent::Response(_) => {}
        }
    }
}

fn read(connection: &mut Connection, stream: StreamId) -> usize {
    let mut receiving = connection.recv_stream(stream);
    let mut chunks = receiving.read(true).expect("the stream stays open");
    let mut length = 0;
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        length += chunk.bytes.len();
    }
    // The connection's driver sends whatever that makes due.
    let _ = chunks.finalize();
    length
}

impl crate::Pair for Ends {
    fn send(&mut self, end: usize, bytes: &[u8], times: usize) {
        let End { connection, stream, .. } = &mut self.ends[end];
        if let (Some((_, connection)), Some(stream)) = (connection, *stream) {
            let mut sending = connection.send_stream(stream);
            for _ in 0..times {
                assert_eq!(sending.write(bytes), Ok(bytes.len()), "what was sent before was read");
            }
        }
        self.flush(end);
    }

    fn receive(&mut self, end: usize) -> usize {
        self.now += Duration::from_micros(1);
        let mut wire = std::mem::take(&mut self.wire[1 - end]);
        for (datagram, ecn) in wire.drain(..) {
            let (from, to) = (ADDRESSES[1 - end], ADDRESSES[end]);
            self.buffer.clear();
            let endpoint = &mut self.ends[end].endpoint;
            let event = endpoint.handle(self.now, from, Some(to.ip()), ecn, datagram, &mut self.buffer);
            event.into_iter().for_each(|event| self.on_datagram(end, event));
        }
        self.wire[1 - end] = wire;
        let mut length = 0;
        let End { connection: Some((_, connection)), stream, .. } = &mut self.ends[end] else { return 0 };
        while let Some(event) = connection.poll() {
            let readable = match event {
                Event::Stream(StreamEvent::Opened { dir }) => connection.streams().accept(dir),
                Event::Stream(StreamEvent::Readable { id }) => Some(id),
                _ => None,
            };
            if let Some(id) = readable {
                *stream = Some(id);
                length += read(connection, id);
            }
        }
        length
    }

    fn flush(&mut self, end: usize) -> usize {
        let now = self.now;
        let End { endpoint, connection: Some((handle, connection)), .. } = &mut self.ends[end] else { return 0 };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        let mut datagrams = 0;
        self.buffer.clear();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut self.buffer) {
            self.wire[end].push((BytesMut::from(&self.buffer[..transmit.size]), transmit.ecn));
            self.buffer.clear();
            datagrams += 1;
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let _next = connection.poll_timeout();
        datagrams
    }
}
