//! Quotas of tenants and buckets.

use super::*;
use crate::facts::tenant::{Quota, QuotaOf};

fn set(of: QuotaOf, bytes_max: Option<u64>, objects_max: Option<u64>) -> Command {
    Command::SetQuota { of, quota: Quota { bytes_max, objects_max } }
}

fn of_bucket() -> QuotaOf {
    QuotaOf::Bucket("aaa".into())
}

fn of_tenant() -> QuotaOf {
    QuotaOf::Tenant(TenantId(1))
}

/// So many bytes, in a blob of their own.
fn small(blob: &mut u64, size: u64) -> NewContent {
    *blob += 1;
    if size == 0 { empty() } else { whole(*blob, size, Timestamp(START_MS)) }
}

#[test]
fn nothing_grows_beyond_a_quota_and_nothing_is_lost_to_one() {
    let mut world = World::new();
    let mut blob = 0;
    let mut small = |size| small(&mut blob, size);
    let over = |result: Result<ObjectHead, Refusal>| match result {
        Err(Refusal::QuotaReached(whose)) => whose,
        other => panic!("{other:?}"),
    };
    world.run(set(of_bucket(), Some(10), None)).expect("the bucket exists");
    world.put("a", small(6)).expect("it fits");
    assert_eq!(over(world.put("b", small(5))), "bucket aaa: 10 bytes");
    world.put("b", small(4)).expect("it fits exactly");
    world.put("a", small(6)).expect("what takes another's place does not grow");
    assert_eq!(over(world.put("a", small(7))), "bucket aaa: 10 bytes");
    world.run(put("bbb", "c", small(100))).expect("another bucket has another quota");

    // Below what is there: nothing grows, what shrinks may.
    world.run(set(of_bucket(), Some(5), None)).expect("the bucket exists");
    assert_eq!(over(world.put("b", small(5))), "bucket aaa: 5 bytes");
    world.put("b", small(1)).expect("it shrinks");
    world.run(delete("aaa", "a")).expect("it shrinks");

    world.run(set(of_bucket(), None, Some(2))).expect("the bucket exists");
    world.put("a", small(1000)).expect("bytes have no bound now");
    assert_eq!(over(world.put("d", small(0))), "bucket aaa: 2 objects");
    world.put("a", small(1)).expect("as many objects as before");
    world.run(set(of_bucket(), None, None)).expect("the bucket exists");

    world.run(set(of_tenant(), None, Some(3))).expect("the tenant exists");
    assert_eq!(over(world.put("d", small(0))), "the tenant: 3 objects");
    world.run(set(of_tenant(), Some(1), None)).expect("the tenant exists");
    assert_eq!(world.put("d", small(1)), Err(Refusal::QuotaExceeded { quota_bytes: 1 }));
    world.run(set(of_tenant(), None, None)).expect("the tenant exists");
    world.put("d", small(1)).expect("there is no bound");
    let unknown = QuotaOf::Bucket("none".into());
    assert_eq!(world.run(set(unknown, None, None)), Err(Refusal::NoSuchBucket));
}
