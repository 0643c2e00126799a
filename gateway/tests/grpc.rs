//! The gRPC door as its clients see it.

mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use makai_gateway::grpc::proto::identity::v1::identity_client::IdentityClient;
use makai_gateway::grpc::proto::identity::v1::{WhoAmIRequest, WhoAmIResponse};
use makai_gateway::grpc::{GrpcDoor, GrpcDoorConfig, GrpcError, token};
use makai_gateway::s3::S3DoorConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use pool::Pool;

const WITHIN: Duration = Duration::from_secs(10);

struct Door {
    pool: Pool,
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), GrpcError>>,
}

async fn start(calls_max: usize, tls: Option<Arc<rustls::ServerConfig>>) -> Door {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let pool = Pool::start(any, S3DoorConfig::default(), None).await;
    let config = GrpcDoorConfig { calls_max, connections_max: 8, now: pool::now, allow_plain: false };
    let door = GrpcDoor::new(pool.identity.clone(), config);
    let listener = TcpListener::bind(any).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let tls = tls.map(|tls| watch::channel(tls).1);
    let served = tokio::spawn(door.serve(listener, tls, shutdown.clone()));
    Door { pool, address, shutdown, served }
}

fn plain(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

async fn who_am_i(channel: Channel, authorization: Option<String>) -> Result<WhoAmIResponse, Status> {
    let mut request = Request::new(WhoAmIRequest {});
    if let Some(authorization) = authorization {
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    }
    Ok(IdentityClient::new(channel).who_am_i(request).await?.into_inner())
}

fn basic(id: &str, secret: &str) -> Option<String> {
    Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}"))))
}

#[tokio::test]
async fn a_key_shows_its_tenant_and_nothing_else_lets_in() {
    let door = start(8, None).await;
    let (pool, channel) = (&door.pool, plain(door.address));
    for (tenant, id, secret) in
        [("one", &pool.access_key, &pool.secret_key), ("two", &pool.other_access_key, &pool.other_secret_key)]
    {
        let me = who_am_i(channel.clone(), basic(id, secret)).await.unwrap();
        assert_eq!((me.tenant.as_str(), &me.access_key_id), (tenant, id));
    }
    let id = &pool.access_key;
    let strangers = [
        None,
        Some(String::new()),
        Some("Basic".into()),
        Some("Basic ====".into()),
        Some(format!("Bearer {}", pool.secret_key)),
        Some(format!("Basic {}", BASE64_STANDARD.encode(id))),
        Some(format!("Basic {}", BASE64_STANDARD.encode([0xff, b':', 0xfe]))),
        Some(format!("Basic {}", "A".repeat(4000))),
        basic(id, ""),
        basic(id, &pool.other_secret_key),
        basic("AKNOBODYNOBODYNOBODY", &pool.secret_key),
        basic("", ""),
    ];
    for stranger in strangers {
        let shown = format!("{stranger:?}");
        let status = who_am_i(channel.clone(), stranger).await.expect_err(&shown);
        assert_eq!(status.code(), Code::Unauthenticated, "{shown}: {status}");
        assert!(!status.message().contains(&pool.secret_key), "{status}");
    }
}

/// A token is good until it expires, for its key alone; and a client cannot say that it came another way than it did.
#[tokio::test]
async fn a_signed_token_lets_in_for_a_while() {
    let door = start(8, None).await;
    let (pool, channel) = (&door.pool, plain(door.address));
    let now = pool::now().0 / 1000;
    let (id, secret) = (&pool.access_key, &pool.secret_key);
    let me = who_am_i(channel.clone(), Some(token::bearer(id, secret, now + 60))).await.unwrap();
    assert_eq!((me.tenant.as_str(), &me.access_key_id), ("one", id));
    let strangers = [
        (token::bearer(id, secret, now - 1), "expired"),
        (token::bearer(id, secret, now + 8000), "at most"),
        (token::bearer(id, &pool.other_secret_key, now + 60), "check both"),
        (token::bearer(&pool.other_access_key, secret, now + 60), "check both"),
        (token::bearer("AKNOBODYNOBODYNOBODY", secret, now + 60), "AKNOBODYNOBODYNOBODY"),
        ("Bearer makait1.x".to_owned(), "give the metadata"),
    ];
    for (stranger, why) in strangers {
        let status = who_am_i(channel.clone(), Some(stranger)).await.expect_err(why);
        assert_eq!(status.code(), Code::Unauthenticated, "{why}: {status}");
        assert!(
            status.message().contains(why) && !status.message().contains(secret.as_str()),
            "{why}: {status}"
        );
    }
}

/// From another machine a secret is refused, and a token too where it could be overheard and the operator does not allow that.
#[tokio::test]
async fn plain_text_is_for_this_machine() {
    let Some(outside) = outside_address() else {
        eprintln!("SKIPPED: this machine has no address but loopback");
        return;
    };
    for allow_plain in [false, true] {
        let pool = Pool::start(SocketAddr::from(([127, 0, 0, 1], 0)), S3DoorConfig::default(), None).await;
        let config = GrpcDoorConfig { calls_max: 8, connections_max: 8, now: pool::now, allow_plain };
        let listener = TcpListener::bind((outside, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let door = GrpcDoor::new(pool.identity.clone(), config);
        let served = tokio::spawn(door.serve(listener, None, shutdown.clone()));
        let (id, secret) = (&pool.access_key, &pool.secret_key);
        let refused = who_am_i(plain(address), basic(id, secret)).await.unwrap_err();
        assert!(refused.message().contains("from this machine alone"), "{refused}");
        let now = pool::now().0 / 1000;
        let mut request = Request::new(WhoAmIRequest {});
        let token = token::bearer(id, secret, now + 60);
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        request.metadata_mut().insert("x-makai-origin", "here".parse().unwrap());
        let answer = IdentityClient::new(plain(address)).who_am_i(request).await;
        match answer {
            Ok(_) => assert!(allow_plain),
            Err(refused) => assert!(!allow_plain && refused.message().contains("in plain text"), "{refused}"),
        }
        shutdown.cancel();
        served.await.unwrap().unwrap();
    }
}

/// An address of this machine that is not loopback, so that what comes from it looks like another's.
fn outside_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only says which address it would send from.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

#[tokio::test]
async fn too_much_at_once_is_said() {
    let door = start(0, None).await;
    let known = basic(&door.pool.access_key, &door.pool.secret_key);
    let status = who_am_i(plain(door.address), known).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

/// Health and reflection answer anyone, and name every service.
#[tokio::test]
async fn tools_find_the_services() {
    let door = start(8, None).await;
    let channel = plain(door.address);
    let service = "makai.identity.v1.Identity";
    let mut health = HealthClient::new(channel.clone());
    for name in ["", service] {
        let answer = health.check(HealthCheckRequest { service: name.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{name:?} serves");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answers: Vec<Result<ServerReflectionResponse, Status>> = answers.into_inner().collect().await;
    let Some(Ok(ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(list)),
        ..
    })) = answers.into_iter().next()
    else {
        panic!("no list")
    };
    assert!(list.service.iter().any(|listed| listed.name == service), "{list:?}");
}

#[tokio::test]
async fn with_certificates_only_tls_is_spoken() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let door = start(8, Some(Arc::new(tls))).await;
    let known = || basic(&door.pool.access_key, &door.pool.secret_key);
    assert!(who_am_i(plain(door.address), known()).await.is_err());
    let trust = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(made.cert.pem()))
        .domain_name("localhost");
    let channel = Endpoint::from_shared(format!("https://{}", door.address)).unwrap().tls_config(trust);
    let me = who_am_i(channel.unwrap().connect_lazy(), known()).await.unwrap();
    assert_eq!(me.tenant, "one");
}

#[tokio::test]
async fn the_door_closes_when_told() {
    let door = start(8, None).await;
    let channel = plain(door.address);
    let known = || basic(&door.pool.access_key, &door.pool.secret_key);
    who_am_i(channel.clone(), known()).await.unwrap();
    door.shutdown.cancel();
    tokio::time::timeout(WITHIN, door.served).await.expect("in time").unwrap().unwrap();
    assert!(who_am_i(channel, known()).await.is_err());
}

/// On a full door the connection makes room that is idle longest, though it has called before; one with a call under way stays.
#[tokio::test]
async fn connections_that_called_make_room_once_they_are_idle() {
    let door = start(64, None).await;
    let busy = plain(door.address);
    let watched = HealthClient::new(busy).watch(HealthCheckRequest { service: String::new() }).await;
    let mut watched = watched.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, 1);
    let authorization = basic(&door.pool.access_key, &door.pool.secret_key);
    let mut idle = Vec::new();
    for _ in 0..7 {
        let channel = plain(door.address);
        who_am_i(channel.clone(), authorization.clone()).await.unwrap();
        idle.push(channel);
    }
    let newcomer = tokio::time::timeout(WITHIN, who_am_i(plain(door.address), authorization));
    newcomer.await.expect("the door makes room").unwrap();
    let more = tokio::time::timeout(Duration::from_millis(50), watched.message()).await;
    assert!(more.is_err(), "the call under way goes on: {more:?}");
}
