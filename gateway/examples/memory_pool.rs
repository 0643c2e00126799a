//! Serves the S3 door over a pool in this process's memory, for trying clients without a cluster.
//!
//! `cargo run -p makai-gateway --example memory_pool -- 127.0.0.1:9000` prints the keys to use and serves until Ctrl-C.

#[path = "../tests/pool/mod.rs"]
mod pool;

use std::net::SocketAddr;

use makai_gateway::s3::S3DoorConfig;
use pool::Pool;

#[tokio::main]
async fn main() {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listen: SocketAddr = listen.parse().expect("an address to listen on, e.g. 127.0.0.1:9000");
    let pool = Pool::start(listen, S3DoorConfig::default(), None).await;
    println!(
        "--endpoint http://{} --access-key {} --secret-key {}",
        pool.address, pool.access_key, pool.secret_key
    );
    println!("another tenant: --access-key {} --secret-key {}", pool.other_access_key, pool.other_secret_key);
    let stop = pool.shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    pool.served.await.expect("the door's task ends by itself").expect("the door has a listener");
}
