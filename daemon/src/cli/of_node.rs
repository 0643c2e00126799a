//! A node that a command speaks of, or in whose name it speaks.

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::payout::select;
use super::remote::Target;
use crate::accounts::payouts::PayoutRow;

/// Which node, and of which cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct OfNode {
    /// Its name, or the beginning of its id. What a node says for itself it says through its own console: `--config` of the
    /// node on its own machine, or a profile that names it
    node: String,
    #[command(flatten)]
    pub target: Target,
}

impl OfNode {
    /// The name that was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.node
    }

    /// # Errors
    /// No node is meant, or several are.
    pub async fn row(&self) -> anyhow::Result<PayoutRow> {
        select(&self.target, &self.node).await
    }

    /// Asks the console of the node itself.
    ///
    /// # Errors
    /// It is not named, does not answer, or refuses.
    pub async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        row: &PayoutRow,
        method: Method,
        path: &str,
        body: &B,
    ) -> anyhow::Result<A> {
        let id = row.node.to_string();
        let named = (!self.target.is_one_node()).then_some(id.as_str());
        self.target.call_node(named, method, path, Some(body)).await
    }
}
