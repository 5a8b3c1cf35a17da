//! TLS for peers: 1.3 with AES-256-GCM alone, which is what Pilot agrees on where processors have AES, the hybrid key exchange
//! X25519MLKEM768, since Pilot's is hybrid too, and no resumption, so that every handshake is whole.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use tokio_rustls::rustls::crypto::{CryptoProvider, SupportedKxGroup};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::framing::READ_BYTES;
use super::{Kind, Load};
use crate::tls::{NAME, Tls, configs};

/// As it is written in a run's notes.
pub(super) const CIPHER: &str = "TLS 1.3, AES-256-GCM, X25519MLKEM768";

/// A certificate and its key, in PEM, in a directory: the two processes of a run find the same.
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Identity {
    /// Made by whoever comes first, for [`NAME`] and `address`.
    pub(super) fn kept_in(directory: &Path, address: IpAddr) -> anyhow::Result<Self> {
        let identity = Self { certificate: directory.join("certificate.pem"), key: directory.join("key.pem") };
        if !identity.certificate.exists() {
            let names = [NAME.to_owned(), address.to_string()];
            let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
            let write = |path: &Path, text: String| {
                fs::write(path, text).with_context(|| format!("writing {}", path.display()))
            };
            write(&identity.key, signing_key.serialize_pem())?;
            write(&identity.certificate, cert.pem())?;
        }
        Ok(identity)
    }

    fn configs(&self, exchange: &'static dyn SupportedKxGroup) -> anyhow::Result<(ServerConfig, ClientConfig)> {
        let provider = CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![exchange],
            ..aws_lc_rs::default_provider()
        };
        let (mut server, mut client) = configs(
            provider,
            CertificateDer::from_pem_file(&self.certificate)?,
            PrivateKeyDer::from_pem_file(&self.key)?,
        )?;
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok((server, client))
    }

    /// Of both ends; `alpn` is the protocol above.
    pub(super) fn tls(&self, alpn: &str) -> anyhow::Result<Tls> {
        let (server, client) = self.configs(kx_group::X25519MLKEM768)?;
        Ok(Tls::of(server, client, alpn))
    }

    /// Of a client whose server has no hybrid key exchange.
    pub(super) fn classic_client(&self) -> anyhow::Result<ClientConfig> {
        Ok(self.configs(kx_group::X25519)?.1)
    }
}

/// What TLS reads from: of itself rustls asks a socket for 4 KiB at a time.
pub(super) type Buffered = BufReader<TcpStream>;

/// What is small or rare gains nothing by a buffer: one that is smaller than what is asked for is passed by, and 1 is the least.
fn buffered(stream: TcpStream, load: &Load) -> anyhow::Result<Buffered> {
    stream.set_nodelay(true)?;
    let is_much = matches!(load.kind, Kind::Messages | Kind::Bulk);
    Ok(BufReader::with_capacity(if is_much { READ_BYTES } else { 1 }, stream))
}

pub(super) async fn connect(tls: &Tls, to: SocketAddr, load: &Load) -> anyhow::Result<client::TlsStream<Buffered>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    // Closed by a reset: a port that waits for late segments could not be used again for a minute, and there are 28,000.
    stream.set_zero_linger()?;
    let connector = TlsConnector::from(tls.client.clone());
    Ok(connector.connect(ServerName::try_from(NAME)?, buffered(stream, load)?).await?)
}

pub(super) async fn accept(tls: &Tls, stream: TcpStream, load: &Load) -> anyhow::Result<server::TlsStream<Buffered>> {
    Ok(TlsAcceptor::from(tls.server.clone()).accept(buffered(stream, load)?).await?)
}
