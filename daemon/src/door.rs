//! Opens the doors to customers: their listeners, their certificates, and the renewal of these without a restart.

use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use makai_config::NodeConfig;
use makai_gateway::files::Files;
use makai_gateway::grpc::{GrpcDoor, GrpcDoorConfig};
use makai_gateway::identity::Identity;
use makai_gateway::jobs::{JobsOptions, JobsService};
use makai_gateway::objects::Objects;
use makai_gateway::outbound::Outbound;
use makai_gateway::s3::{S3Door, S3DoorConfig, serve};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;

/// How often certificate files are looked at for a change.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(30);

/// The certificates in use, which change with their files.
pub type Certificates = watch::Receiver<Arc<rustls::ServerConfig>>;

/// The certificates of this node's doors; `None` where it has none and speaks in the clear.
///
/// # Errors
/// They cannot be read.
pub fn certificates(
    config: &NodeConfig,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<Option<Certificates>> {
    let (Some(cert), Some(key)) = (&config.s3.tls_cert, &config.s3.tls_key) else { return Ok(None) };
    let (renewed, tls) = watch::channel(load_tls(cert, key)?);
    let (cert, key, stop) = (cert.clone(), key.clone(), stop.clone());
    tasks.spawn(async move { follow_certificates(&cert, &key, &renewed, &stop).await });
    Ok(Some(tls))
}

/// What this node's doors may reach for customers.
#[must_use]
pub fn outbound(config: &NodeConfig) -> Outbound {
    Outbound::new(config.s3.allow_private_endpoints)
}

/// Starts the gRPC door where the configuration has one; returns its address.
///
/// # Errors
/// The address cannot be bound.
pub async fn start_grpc(
    config: &NodeConfig,
    identity: Identity,
    jobs: JobsOptions,
    tls: Option<Certificates>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = config.grpc.listen else { return Ok(None) };
    let mut door = GrpcDoor::new(
        identity,
        GrpcDoorConfig {
            calls_max: config.limits.requests_in_flight_max as usize,
            connections_max: config.grpc.connections_max as usize,
            now: clock::now,
            allow_plain: config.grpc.allow_plain,
        },
    );
    Files::new(jobs.objects.clone(), door.gate()).join(&mut door);
    door.add(JobsService::server(door.gate(), jobs));
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("listen on {listen} (grpc.listen)"))?;
    let address = listener.local_addr()?;
    let stop = stop.clone();
    tasks.spawn(async move {
        if let Err(error) = door.serve(listener, tls, stop).await {
            tracing::error!(%error, "the gRPC door closed");
        }
    });
    Ok(Some(address))
}

/// Starts the S3 door where the configuration has one; returns its address.
///
/// # Errors
/// The address cannot be bound.
pub async fn start_s3(
    config: &NodeConfig,
    objects: Objects,
    identity: Identity,
    tls: Option<Certificates>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = config.s3.listen else { return Ok(None) };
    let door = S3DoorConfig {
        region: config.s3.region.clone(),
        domains: config.s3.domains.clone(),
        requests_max: config.limits.requests_in_flight_max as usize,
        connections_max: config.s3.connections_max as usize,
        website_domains: config.s3.website_domains.clone(),
        log_interval: Duration::from_secs(config.s3.log_interval_secs),
        outbound: outbound(config),
    };
    let door = S3Door::new(objects, identity, door)?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("listen on {listen} (s3.listen)"))?;
    let address = listener.local_addr()?;
    let stop = stop.clone();
    tasks.spawn(async move {
        if let Err(error) = serve(door, vec![listener], tls, stop).await {
            tracing::error!(%error, "the S3 door closed");
        }
    });
    Ok(Some(address))
}

fn load_tls(cert: &Path, key: &Path) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let open = |path: &Path| File::open(path).map(BufReader::new).with_context(|| format!("read {path:?}"));
    let chain = CertificateDer::pem_reader_iter(open(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{cert:?} (s3.tls_cert) is not a PEM certificate chain"))?;
    let key_der = PrivateKeyDer::from_pem_reader(open(key)?)
        .with_context(|| format!("{key:?} (s3.tls_key) is not a PEM private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .with_context(|| format!("{cert:?} and {key:?} do not belong together"))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn changed_at(cert: &Path, key: &Path) -> Option<(SystemTime, SystemTime)> {
    let of = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    Some((of(cert)?, of(key)?))
}

async fn follow_certificates(
    cert: &Path,
    key: &Path,
    renewed: &watch::Sender<Arc<rustls::ServerConfig>>,
    stop: &CancellationToken,
) {
    let mut seen = changed_at(cert, key);
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATES_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let now = changed_at(cert, key);
        if now == seen {
            continue;
        }
        match load_tls(cert, key) {
            Ok(tls) => {
                tracing::info!(?cert, "new certificates are in use");
                renewed.send_replace(tls);
                seen = now;
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the old certificates stay in use"),
        }
    }
}
