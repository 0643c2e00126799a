//! The one loop that all vector kernels share.

/// Runs `$body` once for every column below `$columns`, with `$column` a constant: a separate copy each.
macro_rules! for_each_column {
    ($columns:ident, $column:ident => $body:expr) => {
        for_each_column!(@ $columns, $column, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $columns:ident, $column:ident, $body:expr, $($at:literal)*) => {
        $(if $columns > $at {
            const $column: usize = $at;
            $body;
        })*
    };
}

/// The blocks of one family, made from the operations in the module `$ops`:
///
/// - `Vector`, `Input` (a vector ready to be multiplied), `Coefficient` and `VECTOR_BYTES`,
/// - `zero`, `load`, `store`, `store_past_caches`, `prefetch`, `input`, `coefficient` and `add_product`,
/// - `settle`, which changes nothing, but keeps the compiler from re-ordering a sum into a tree that needs more
///   registers than there are: applied every COLUMNS_PER_SUM columns.
///
/// `block::<COLUMNS, ROWS, VECTORS, PREFETCH>` takes VECTORS vectors of every input per step, and keeps their sums
/// for all rows in registers.
macro_rules! blocks {
    ($features:literal, $rows_max:literal, $cached:literal, $streaming:literal, $($row:literal)*) => {
        /// # Safety
        /// As [`Call`] says. COLUMNS is at most 16, VECTORS vectors divide a step.
        #[target_feature(enable = $features)]
        unsafe fn block<const COLUMNS: usize, const ROWS: usize, const VECTORS: usize, const PREFETCH: bool>(
            call: &Call,
        ) {
            const { assert!(COLUMNS <= COLUMNS_MAX && STEP_BYTES % (VECTORS * VECTOR_BYTES) == 0) };
            let Call { tables, inputs, outputs, from, to, is_sum, is_past_caches } = *call;
            let mut at = from;
            while at < to {
                let mut sums = [[zero(); VECTORS]; ROWS];
                if is_sum {
                    for row in 0..ROWS {
                        // SAFETY: row < ROWS, and `at` lies in `from..to` of that output.
                        let target = unsafe { (*outputs.add(row)).add(at) };
                        for vector in 0..VECTORS {
                            // SAFETY: VECTORS vectors divide `from..to`, so all of them lie in it.
                            sums[row][vector] = unsafe { load(target.add(vector * VECTOR_BYTES)) };
                        }
                    }
                }
                for_each_column!(COLUMNS, COLUMN => {
                    // SAFETY: COLUMN < COLUMNS.
                    let source = unsafe { *inputs.add(COLUMN) };
                    if PREFETCH {
                        for vector in 0..VECTORS {
                            if vector * VECTOR_BYTES % 64 == 0 {
                                prefetch(source.wrapping_add(at).wrapping_add(vector * VECTOR_BYTES + PREFETCH_BYTES));
                            }
                        }
                    }
                    let mut vectors = [input(zero()); VECTORS];
                    for vector in 0..VECTORS {
                        // SAFETY: the vector lies in `from..to` of that input.
                        vectors[vector] = input(unsafe { load(source.add(at).add(vector * VECTOR_BYTES)) });
                    }
                    for row in 0..ROWS {
                        // SAFETY: COLUMN < COLUMNS and row < ROWS: the table is one of the block's.
                        let factor = unsafe { coefficient(tables.add((COLUMN * ROWS + row) * TABLE.bytes())) };
                        for vector in 0..VECTORS {
                            sums[row][vector] = add_product(sums[row][vector], vectors[vector], factor);
                        }
                    }
                    if (COLUMN + 1).is_multiple_of(COLUMNS_PER_SUM) {
                        for row in 0..ROWS {
                            for vector in 0..VECTORS {
                                sums[row][vector] = settle(sums[row][vector]);
                            }
                        }
                    }
                });
                for row in 0..ROWS {
                    for vector in 0..VECTORS {
                        // SAFETY: row < ROWS, and the vector lies in `from..to` of that output. Stores past the
                        // caches are asked for only where `from` of every output is aligned for them, and so is
                        // every multiple of the vector's size from there.
                        unsafe {
                            let target = (*outputs.add(row)).add(at).add(vector * VECTOR_BYTES);
                            if is_past_caches {
                                store_past_caches(target, sums[row][vector]);
                            } else {
                                store(target, sums[row][vector]);
                            }
                        }
                    }
                }
                // Cannot wrap: `to` is the end of a slice.
                at = at.wrapping_add(VECTORS * VECTOR_BYTES);
            }
        }

        const ROWS_MAX: usize = $rows_max;

        fn cached(columns: usize, rows: usize) -> Block {
            static BLOCKS: [[Block; ROWS_MAX]; COLUMNS_MAX] =
                blocks!(@table $cached, false, [$($row)*] 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
            BLOCKS[columns - 1][rows - 1]
        }

        fn streaming(columns: usize, rows: usize) -> Block {
            static BLOCKS: [[Block; ROWS_MAX]; COLUMNS_MAX] =
                blocks!(@table $streaming, true, [$($row)*] 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
            BLOCKS[columns - 1][rows - 1]
        }
    };
    (@table $vectors:literal, $prefetch:literal, $rows:tt $($column:literal)*) => {
        [$(blocks!(@row $vectors, $prefetch, $column, $rows)),*]
    };
    (@row $vectors:literal, $prefetch:literal, $column:literal, [$($row:literal)*]) => {
        [$(block::<$column, $row, $vectors, $prefetch>),*]
    };
}
