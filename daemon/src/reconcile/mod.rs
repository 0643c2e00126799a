//! Loops that bring what is nearer to what should be. Each is one file, reads facts, acts, and may be run again at any
//! time: none keeps a state that matters.
//!
//! | loop          | runs on  | brings about                                                      |
//! |---------------|----------|-------------------------------------------------------------------|
//! | [`map`]       | all      | the newest cluster map here; addresses and members from it        |
//! | [`heartbeat`] | all      | the leader hears from this node                                   |
//! | [`reach`]     | all      | a node that nobody can dial is connected to those who relay to it |
//! | [`health`]    | leader   | who is up, as a fact                                              |
//! | [`voters`]    | leader   | as many voters as configured, from nodes with that role           |
//! | [`placement`] | leader   | groups for every scheme in use, on disks that may be used         |
//! | [`garbage`]   | leader   | unreferenced blobs forgotten, their shards deleted                |
//! | [`shards`]    | storage  | every shard that should be on a disk of this node is there        |
//! | [`compact`]   | storage  | room of dead shards is given back                                 |
//! | [`presence`]  | storage  | a disk that is gone from under the daemon is out of use           |
//! | [`orphans`]   | storage  | no shard stays that no fact names                                 |
//! | [`displaced`] | storage  | no shard stays whose slot went to another disk                    |
//! | [`scrub`]     | storage  | every shard is read back within its period                        |
//! | [`lifecycle`] | leader   | versions and uploads go when their bucket's rules say so           |
//! | [`replicate`] | a gateway | other S3 servers get copies, as buckets' owners wish               |
//! | [`squeeze`]   | a gateway | blobs of which a good part is dead are emptied                     |
//! | [`notify`]    | a gateway | webhooks hear of changes of keys, as their buckets' owners wish   |
//! | [`schedule`]  | leader   | tasks that wait are given to nodes; attempts of dead nodes end     |
//! | [`agent`]     | compute  | attempts given to this node run, and are reported                 |
//! | [`sessions`]  | leader   | replies of processes long gone are forgotten, and mounts that died |
//! | [`epochs`]    | voters   | epochs sealed, computed and signed                                |
//! | [`audit`]     | leader   | nodes prove that they hold what they should                       |
//! | [`billing`]   | leader   | jobs are charged while they run, at the configuration's prices    |
//! | [`drill`]     | compute, leader | idle processors are measured by work that proves itself     |
//! | [`lots`]      | compute  | prizes are drawn, and proved                                      |
//! | [`stakes`]    | voters   | stakes on a chain are known, where the ledger is one              |
//! | [`usage`]     | gateways | what nodes served here, reported once an epoch                    |
//! | [`chain`]     | trusted  | signed roots are on the chain, where the ledger is one            |
//! | [`payout`]    | storage, compute | this node's earnings have an address                              |

pub mod agent;
pub mod audit;
pub mod billing;
pub mod cards;
pub mod chain;
pub mod compact;
pub mod displaced;
pub mod drill;
pub mod epochs;
pub mod garbage;
pub mod health;
pub mod heartbeat;
pub mod lifecycle;
pub mod lost;
pub mod lots;
pub mod map;
pub mod notify;
pub mod orphans;
pub mod payout;
pub mod placement;
pub mod plan;
pub mod presence;
pub mod reach;
pub mod replicate;
pub mod schedule;
pub mod scrub;
pub mod sessions;
pub mod shards;
pub mod squeeze;
pub mod stakes;
pub mod told;
pub mod usage;
pub mod voters;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use makai_config::NodeConfig;
use makai_erasure::NodeId;
use makai_erasure::stripe::ShardPeers;
use makai_ops::metering::ServedMeter;
use makai_raft::handle::Metadata;
use makai_raft::view::MapView;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::chain::Chain;
use crate::accounts::drills::Drills;
use crate::disks::LocalDisks;
use crate::identity::NodeIdentity;
use crate::members::Members;
use crate::transport::Transport;

/// What the loops work with. Cheap to clone.
#[derive(Clone)]
pub struct Shell {
    pub id: NodeId,
    pub identity: NodeIdentity,
    pub config: Arc<NodeConfig>,
    pub members: Arc<Members>,
    pub transport: Transport,
    pub facts: Arc<dyn Metadata>,
    /// The same for loops that look again soon and propose what the facts check: where there is a voter, answered from what
    /// it knows, at the cost of no message. What they ask again is asked anew once the facts have changed: elsewhere than on a
    /// voter, once the leader has said so with its answer to a heartbeat.
    pub here: Arc<dyn Metadata>,
    pub peers: Arc<dyn ShardPeers>,
    pub disks: LocalDisks,
    pub map: MapView,
    /// Told when a newer map is known to exist.
    pub map_changed: Arc<Notify>,
    /// The epoch of the map here.
    pub map_renewed: Arc<watch::Sender<u64>>,
    pub progress: Arc<shards::Progress>,
    /// What goes through this node's line.
    pub line: Arc<reach::Line>,
    /// Where the ledger is a chain.
    pub chain: Option<Arc<Chain>>,
    /// What nodes served through this one.
    pub served: ServedMeter,
    /// This node's part in running jobs.
    pub jobs: Arc<agent::Offer>,
    pub stop: CancellationToken,
}

impl Shell {
    /// Whether this node leads now: the loops of the leader do nothing elsewhere.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.members.meta().is_some_and(makai_raft::handle::MetaNode::is_leader)
    }

    /// Waits; false once the node stops.
    pub async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.stop.cancelled() => false,
        }
    }

    /// Whether this node may change facts: voters and gateways may.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        let has = |role| self.config.has_role(role);
        has(makai_config::Role::Voter) || has(makai_config::Role::Gateway)
    }

    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.config.storage.reconcile_interval_ms)
    }
}

/// How long a loop may go on with what it is at when the node stops. Any may be cut anywhere, as a crash would.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Starts the loops of this node; they end when `shell.stop` is cancelled.
pub fn start(shell: &Shell, tasks: &TaskTracker) {
    let spawn = |run: BoxFuture<'static, ()>| {
        let stop = shell.stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = run => {}
                () = async {
                    stop.cancelled().await;
                    tokio::time::sleep(END_WITHIN).await;
                } => {}
            }
        });
    };
    spawn(map::run(shell.clone()).boxed());
    spawn(heartbeat::run(shell.clone()).boxed());
    spawn(reach::run(shell.clone()).boxed());
    if shell.members.meta().is_some() {
        spawn(health::run(shell.clone()).boxed());
        spawn(voters::run(shell.clone()).boxed());
        spawn(placement::run(shell.clone()).boxed());
        spawn(garbage::run(shell.clone()).boxed());
        spawn(lifecycle::run(shell.clone()).boxed());
        spawn(sessions::run(shell.clone()).boxed());
        spawn(epochs::run(shell.clone()).boxed());
        spawn(audit::run(shell.clone()).boxed());
        spawn(drill::verify(shell.clone()).boxed());
        spawn(billing::run(shell.clone()).boxed());
        spawn(stakes::run(shell.clone()).boxed());
    }
    if shell.members.meta().is_some() || shell.config.has_role(makai_config::Role::Gateway) {
        spawn(schedule::run(shell.clone()).boxed());
    }
    if shell.disks.all().next().is_some() {
        spawn(presence::run(shell.clone()).boxed());
        spawn(shards::run(shell.clone()).boxed());
        spawn(orphans::run(shell.clone()).boxed());
        spawn(displaced::run(shell.clone()).boxed());
        spawn(scrub::run(shell.clone()).boxed());
        spawn(compact::run(shell.clone()).boxed());
    }
    let has_compute = shell.config.has_role(makai_config::Role::Compute);
    if has_compute || shell.disks.all().next().is_some() {
        spawn(payout::run(shell.clone()).boxed());
    }
    if has_compute {
        spawn(lots::run(shell.clone()).boxed());
    }
    if has_compute && shell.config.compute.drill_pct > 0 {
        let drills = Drills::new(shell.id);
        shell.members.set_drills(Arc::clone(&drills));
        spawn(drill::work(shell.clone(), drills).boxed());
    }
    if shell.is_trusted() {
        spawn(usage::run(shell.clone()).boxed());
        spawn(chain::run(shell.clone()).boxed());
    }
}
