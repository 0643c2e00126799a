//! Who may do what: what the doors need to know of a bucket before they serve it.

use super::buckets;
use super::draft::{Draft, Outcome};
use super::kv::View;
use super::{tenants, versions};
use crate::facts::command::{Refusal, Reply};
use crate::facts::identity::{ACL_BYTES_MAX, IdentityAnswer, IdentityCommand, IdentityQuery};
use crate::facts::query::Answer;

/// Documents of one answer.
const DOCUMENTS_MAX: usize = 32;

pub fn run(draft: &mut Draft<'_>, command: &IdentityCommand) -> Outcome<Reply> {
    match command {
        IdentityCommand::SetObjectAcl { bucket, key, acl, version } => {
            if acl.as_ref().is_some_and(|acl| acl.len() > ACL_BYTES_MAX) {
                let why = format!("an access list has at most {ACL_BYTES_MAX} bytes");
                return Err(Refusal::Invalid(why).into());
            }
            versions::set_acl(draft, bucket, key, *version, acl.as_ref())
        }
    }
}

pub fn answer(view: &dyn View, query: &IdentityQuery) -> Outcome<Answer> {
    match query {
        IdentityQuery::BucketAccess { name, documents } => {
            let bucket = buckets::get(view, name)?;
            let tenant_name = tenants::get(view, bucket.tenant)?.name;
            let mut found = Vec::new();
            for document in documents.iter().take(DOCUMENTS_MAX) {
                found.push(buckets::read_document(view, bucket.id, document)?);
            }
            Ok(Answer::Identity(IdentityAnswer::BucketAccess { bucket, tenant_name, documents: found }))
        }
    }
}
