//! Whether two sets of repetitions differ by more than chance.
//!
//! Three repetitions of one cell say little about their own noise; those of all cells of a scenario together say much.
//! So the noise is pooled: the standard deviation of the logarithm of a figure within its cell, over all cells.
//! Two cells differ if
//!
//! 1. the ranges of their repetitions do not overlap, and
//! 2. the medians are at least [`SMALLEST`] apart, and
//! 3. the logarithm of their ratio is more than [`STANDARD_ERRORS`] times its standard error.
//!
//! A report has about a thousand pairs; so far out, at most one of them differs by chance. What this
//! cannot see is a drift of the machine from one report to the next: see [`super::compare`].

use super::figures::Spread;
use serde::Serialize;

/// A change of medians below this part is not told, however quiet the machine.
pub const SMALLEST: f64 = 0.02;
/// How many standard errors a change has to exceed.
pub const STANDARD_ERRORS: f64 = 3.5;
/// The standard error of the median of a few, against that of their mean: 1.16 to 1.2 if the noise is normal, 1.34 to
/// 1.46 if it is uniform, less than 1 if it has long tails.
const MEDIAN_ERROR: f64 = 1.35;
/// Repetitions that are needed on each side.
pub const RUNS_NEEDED: usize = 2;
/// Degrees of freedom (repetitions above the first, over all cells) below which the noise itself is a guess.
pub const FREEDOM_NEEDED: usize = 6;

/// What can be said about a second set of repetitions against a first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is higher, beyond noise.
    Higher,
    /// It is lower, beyond noise.
    Lower,
    /// The difference may be noise.
    WithinNoise,
    /// Too few repetitions to tell.
    Unknown,
}

/// Run-to-run noise of a figure, pooled over cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Noise {
    /// Standard deviation of the logarithm within a cell: about the relative one.
    pub deviation: f64,
    /// Degrees of freedom that it rests on.
    pub freedom: usize,
}

impl Noise {
    /// Pooled over `cells`, each the repetitions of one. A cell with a figure of 0 is left out: it has no logarithm.
    pub fn pooled(cells: impl IntoIterator<Item = Vec<f64>>) -> Noise {
        let mut squares = 0.0;
        let mut freedom = 0;
        for values in cells {
            if values.len() < 2 || values.iter().any(|v| *v <= 0.0) {
                continue;
            }
            let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            squares += logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>();
            freedom += logs.len() - 1;
        }
        let deviation = if freedom == 0 { 0.0 } else { (squares / freedom as f64).sqrt() };
        Noise { deviation, freedom }
    }

    /// The smallest relative change that can be told with so many repetitions on the two sides; `None`: none can.
    pub fn smallest_change(self, before: usize, after: usize) -> Option<f64> {
        let enough = before.min(after) >= RUNS_NEEDED && self.freedom >= FREEDOM_NEEDED;
        let error =
            MEDIAN_ERROR * self.deviation * (1.0 / before as f64 + 1.0 / after as f64).sqrt();
        enough.then(|| ((STANDARD_ERRORS * error).exp() - 1.0).max(SMALLEST))
    }

    /// `after` against `before`.
    pub fn judge(self, before: &[f64], after: &[f64]) -> Change {
        let Some(smallest) = self.smallest_change(before.len(), after.len()) else {
            return Change::Unknown;
        };
        let (Some(a), Some(b)) = (Spread::of(before), Spread::of(after)) else {
            return Change::Unknown;
        };
        let apart = |low: Spread, high: Spread| {
            low.max < high.min && high.median >= low.median * (1.0 + smallest)
        };
        match () {
            () if apart(a, b) => Change::Higher,
            () if apart(b, a) => Change::Lower,
            () => Change::WithinNoise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform in -1.0..1.0, the same in every run.
    fn draws(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    }

    /// Near enough to a normal distribution with a deviation of 1.
    fn normal(draw: &mut impl FnMut() -> f64) -> f64 {
        (0..12).map(|_| draw() / 2.0).sum()
    }

    /// Uniform, with a deviation of 1.
    fn uniform(draw: &mut impl FnMut() -> f64) -> f64 {
        draw() * 3f64.sqrt()
    }

    fn cells_of(noise: impl Fn() -> f64, runs: usize) -> Vec<Vec<f64>> {
        let cell = || (0..runs).map(|_| 1e4 * noise().exp()).collect();
        (0..1000).map(|_| cell()).collect()
    }

    fn cells(deviation: f64, runs: usize, seed: u64) -> Vec<Vec<f64>> {
        let draw = std::cell::RefCell::new(draws(seed));
        cells_of(|| deviation * normal(&mut *draw.borrow_mut()), runs)
    }

    #[test]
    fn pooling_finds_the_deviation_that_was_put_in() {
        let noise = Noise::pooled(cells(0.05, 3, 7));
        assert_eq!(noise.freedom, 2000);
        assert!((noise.deviation - 0.05).abs() < 0.003, "{noise:?}");
    }

    #[test]
    fn of_a_thousand_unchanged_cells_at_most_one_has_changed() {
        for runs in [2, 3, 5, 8] {
            for is_normal in [true, false] {
                let draw = std::cell::RefCell::new(draws(11));
                let noise = || {
                    let draw = &mut *draw.borrow_mut();
                    0.05 * if is_normal { normal(draw) } else { uniform(draw) }
                };
                let (a, b) = (cells_of(noise, runs), cells_of(noise, runs));
                let pooled = Noise::pooled(a.iter().chain(&b).cloned());
                let pairs = a.iter().zip(&b);
                let changed = pairs.filter(|(a, b)| pooled.judge(a, b) != Change::WithinNoise);
                assert!(changed.count() <= 1, "{runs} runs, normal: {is_normal}");
            }
        }
    }

    #[test]
    fn a_change_well_above_the_noise_is_told_in_its_direction() {
        let (a, b) = (cells(0.02, 3, 1), cells(0.02, 3, 2));
        let noise = Noise::pooled(a.iter().chain(&b).cloned());
        let smallest = noise.smallest_change(3, 3).unwrap();
        assert!((0.05..0.09).contains(&smallest), "{smallest}");
        let raised: Vec<f64> = b[0].iter().map(|v| v * 1.2).collect();
        assert_eq!(noise.judge(&a[0], &raised), Change::Higher);
        assert_eq!(noise.judge(&raised, &a[0]), Change::Lower);
    }

    #[test]
    fn too_few_repetitions_tell_nothing() {
        let noise = Noise::pooled(cells(0.02, 3, 1));
        assert_eq!(noise.judge(&[1.0], &[9.0]), Change::Unknown);
        assert_eq!(noise.judge(&[], &[9.0, 9.0]), Change::Unknown);
        let guess = Noise::pooled([vec![1.0, 1.1], vec![2.0, 2.1]]);
        assert_eq!(guess.judge(&[1.0, 1.1], &[2.0, 2.1]), Change::Unknown);
    }

    #[test]
    fn ranges_that_overlap_have_not_changed_though_the_medians_are_far_apart() {
        let noise = Noise { deviation: 0.001, freedom: 100 };
        assert_eq!(noise.judge(&[1.0, 1.0, 2.0], &[1.5, 1.9, 1.9]), Change::WithinNoise);
    }

    #[test]
    fn a_change_of_next_to_nothing_is_not_told_on_a_quiet_machine() {
        let noise = Noise { deviation: 0.0, freedom: 100 };
        assert_eq!(noise.judge(&[100.0, 100.0], &[101.0, 101.0]), Change::WithinNoise);
        assert_eq!(noise.judge(&[100.0, 100.0], &[103.0, 103.0]), Change::Higher);
        assert_eq!(noise.judge(&[0.0, 0.0], &[3.0, 3.0]), Change::Higher);
    }
}
