//! TLS 1.3 for the peers: rustls over aws-lc-rs, the library that Pilot encrypts with too, and TCP without Nagle's delay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The name that every agent's certificate has.
pub(crate) const NAME: &str = "agent";
/// Round trips before the first byte of a request: TCP's and TLS 1.3's.
pub(crate) const CONNECT_ROUND_TRIPS: u64 = 2;

/// Both ends' configuration, of one certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl Tls {
    /// `alpn` is the protocol above.
    pub(crate) fn new(alpn: &str) -> anyhow::Result<Self> {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let (server, client) = configs(aws_lc_rs::default_provider(), cert.into(), key)?;
        Ok(Self::of(server, client, alpn))
    }

    pub(crate) fn of(mut server: ServerConfig, mut client: ClientConfig, alpn: &str) -> Self {
        server.alpn_protocols = vec![alpn.into()];
        client.alpn_protocols = vec![alpn.into()];
        Self { server: Arc::new(server), client: Arc::new(client) }
    }

    pub(crate) async fn accept(&self, listener: &TcpListener) -> anyhow::Result<server::TlsStream<TcpStream>> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        TlsAcceptor::from(Arc::clone(&self.server)).accept(stream).await.context("TLS, accepting")
    }

    /// Connects to who listens there.
    pub(crate) async fn connect(&self, to: SocketAddr) -> anyhow::Result<client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.client));
        connector.connect(ServerName::try_from(NAME)?, stream).await.context("TLS, connecting")
    }
}

/// Configurations of the one end, who has a certificate and its key, and of the other, who knows the certificate.
pub(crate) fn configs(
    provider: CryptoProvider,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<(ServerConfig, ClientConfig)> {
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((server, client))
}

/// A runtime of one thread: an agent is one.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// How long anything may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
