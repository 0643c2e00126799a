//! One node of a MAKAI cluster, and the commands that steer it.

fn main() {}
