//! Carries out the lifecycles of buckets: versions whose time is over go or get another storage class, uploads that
//! nobody completes are aborted.
//!
//! What is decided is decided by [`makai_raft::lifecycle`], from one page of a listing at a time; the facts then carry
//! it out only as far as it still applies. A round that is cut short is begun anew by the next one.

use std::time::Duration;

use makai_raft::facts::Timestamp;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::query::{Answer, ENTRIES_PER_ANSWER_MAX, Query};
use makai_raft::facts::version::{
    EXPIRE_MAX, ListVersions, ListedVersion, VersionAnswer, VersionCommand, VersionQuery,
};
use makai_raft::handle::MetaError;
use makai_raft::lifecycle::{Calendar, Decided, Rules, Sweep};

use super::Shell;
use crate::clock;

/// Buckets whose rules are read at once.
const BUCKETS_AT_ONCE: u32 = 100;
/// Rest between two pages of a bucket, so that clients come first.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

pub async fn run(shell: Shell) {
    let every = Duration::from_secs(shell.config.storage.lifecycle_interval_secs);
    while shell.pause(every).await {
        if shell.is_leader()
            && let Err(error) = round(&shell).await
        {
            tracing::debug!(%error, "lifecycles were not carried out to the end; trying again");
        }
    }
}

/// Goes through all buckets that have rules.
async fn round(shell: &Shell) -> Result<(), MetaError> {
    let mut after = 0;
    loop {
        let query = VersionQuery::LifecycleBuckets { after, entries_max: BUCKETS_AT_ONCE };
        let Answer::Version(VersionAnswer::LifecycleBuckets(page)) =
            shell.facts.query(Query::Version(query)).await?
        else {
            return Ok(());
        };
        let Some((last, ..)) = page.last() else { return Ok(()) };
        after = *last;
        for (_, bucket, rules) in page {
            match Rules::decode(&rules) {
                Ok(rules) => match tend(shell, &bucket, &rules).await {
                    // Deleted meanwhile.
                    Ok(()) | Err(MetaError::Refused(Refusal::NoSuchBucket)) => {}
                    Err(error) => return Err(error),
                },
                Err(error) => tracing::warn!(bucket, %error, "a lifecycle is not carried out"),
            }
            if !shell.is_leader() || shell.stop.is_cancelled() {
                return Ok(());
            }
        }
    }
}

async fn tend(shell: &Shell, bucket: &str, rules: &Rules) -> Result<(), MetaError> {
    let day_ms = shell.config.storage.lifecycle_day_secs.saturating_mul(1000);
    let (now, calendar) = (clock::now(), Calendar { day_ms });
    if rules.concerns_versions() {
        sweep(shell, bucket, rules, now, calendar).await?;
    }
    if rules.concerns_uploads() {
        abort(shell, bucket, rules, now, calendar).await?;
    }
    Ok(())
}

async fn sweep(
    shell: &Shell,
    bucket: &str,
    rules: &Rules,
    now: Timestamp,
    calendar: Calendar,
) -> Result<(), MetaError> {
    let mut sweep = Sweep::new(rules, now, calendar);
    let mut list = ListVersions {
        bucket: bucket.to_owned(),
        prefix: rules.common_prefix(),
        entries_max: ENTRIES_PER_ANSWER_MAX,
        ..ListVersions::default()
    };
    loop {
        let Answer::Version(VersionAnswer::Versions { entries, is_truncated }) =
            shell.facts.query(Query::Version(VersionQuery::Versions(list.clone()))).await?
        else {
            return Ok(());
        };
        let mut decided = Decided::default();
        for entry in &entries {
            sweep.see(entry, &mut decided);
        }
        if !is_truncated {
            sweep.end(&mut decided);
        }
        carry_out(shell, bucket, &decided).await?;
        (list.after, list.after_version) = match entries.into_iter().last() {
            Some(ListedVersion::Version { head, .. }) => {
                let version = head.version_id();
                (head.key, Some(version))
            }
            Some(ListedVersion::Marker { key, version, .. }) => (key, Some(version)),
            Some(ListedVersion::CommonPrefix(_)) | None => return Ok(()),
        };
        if !is_truncated || !shell.is_leader() || !shell.pause(PAGE_PAUSE).await {
            return Ok(());
        }
    }
}

async fn carry_out(shell: &Shell, bucket: &str, decided: &Decided) -> Result<(), MetaError> {
    for versions in decided.over.chunks(EXPIRE_MAX) {
        tracing::debug!(bucket, count = versions.len(), "versions expire");
        let command = VersionCommand::Expire { bucket: bucket.to_owned(), versions: versions.to_vec() };
        shell.facts.propose(Command::Version(command)).await?;
    }
    for versions in decided.moved.chunks(EXPIRE_MAX) {
        tracing::debug!(bucket, count = versions.len(), "versions get another storage class");
        let command = VersionCommand::Transition { bucket: bucket.to_owned(), versions: versions.to_vec() };
        shell.facts.propose(Command::Version(command)).await?;
    }
    Ok(())
}

async fn abort(
    shell: &Shell,
    bucket: &str,
    rules: &Rules,
    now: Timestamp,
    calendar: Calendar,
) -> Result<(), MetaError> {
    let mut after = None;
    loop {
        let query = Query::Uploads {
            bucket: bucket.to_owned(),
            prefix: rules.common_prefix(),
            after,
            entries_max: ENTRIES_PER_ANSWER_MAX,
        };
        let Answer::Uploads { uploads, is_truncated } = shell.facts.query(query).await? else {
            return Ok(());
        };
        for upload in uploads.iter().filter(|upload| rules.is_abandoned(upload, now, calendar)) {
            let command = Command::AbortUpload {
                bucket: bucket.to_owned(),
                key: upload.key.clone(),
                upload_id: upload.id.clone(),
            };
            match shell.facts.propose(command).await {
                // Completed or aborted meanwhile.
                Ok(_) | Err(MetaError::Refused(Refusal::NoSuchUpload)) => {}
                Err(error) => return Err(error),
            }
        }
        after = uploads.into_iter().last().map(|upload| (upload.key, upload.id));
        if after.is_none() || !is_truncated || !shell.is_leader() || !shell.pause(PAGE_PAUSE).await {
            return Ok(());
        }
    }
}
