//! Many small scenarios within one test, a few at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `scenario` for each item, at most `width` at once. A scenario that panics fails the
/// test, once those beside it have ended.
///
/// # Panics
/// A scenario did.
pub fn side_by_side<T: Sync>(items: &[T], width: usize, scenario: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..width.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    scenario(item);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_has_its_turn() {
        let sum = AtomicUsize::new(0);
        side_by_side(&[1, 2, 3, 4, 5], 2, |item| {
            sum.fetch_add(*item, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 15);
    }

    #[test]
    fn a_scenario_that_panics_fails_the_test() {
        let run = || side_by_side(&[1, 2], 1, |item| assert_ne!(*item, 2));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
