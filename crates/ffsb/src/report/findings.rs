//! What the figures say, in words: who is nearest to bare metal, and which setting costs most.
//!
//! A setting is judged by pairs of subjects that differ in it and in nothing else, scenario by scenario and with the
//! same number of threads. What several pairs say is joined by the geometric mean of their ratios.

use super::figures::{Figures, Measure};
use super::noise::{Change, Noise};
use super::{Report, Subject, number};
use std::collections::BTreeMap;

/// What two subjects may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// Who serves the disk.
    Server,
    /// How it reaches the workload.
    Device,
    /// Image format.
    Format,
    /// Cache mode.
    Cache,
    /// How the server does its I/O.
    Aio,
}

impl Setting {
    const ALL: [Setting; 5] =
        [Setting::Server, Setting::Device, Setting::Format, Setting::Cache, Setting::Aio];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Setting::Server => "server",
            Setting::Device => "device",
            Setting::Format => "format",
            Setting::Cache => "cache",
            Setting::Aio => "aio",
        }
    }

    fn of(self, subject: &Subject) -> &str {
        match self {
            Setting::Server => &subject.server,
            Setting::Device => &subject.device,
            Setting::Format => &subject.format,
            Setting::Cache => &subject.cache,
            Setting::Aio => &subject.aio,
        }
    }
}

/// What pairs of cells say together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Pairs.
    pub pairs: u32,
    /// Of these, beyond noise: fewer transactions.
    pub lower: u32,
    /// Beyond noise: more transactions.
    pub higher: u32,
    /// With too few repetitions to tell.
    pub unknown: u32,
    log_sum: f64,
}

impl Tally {
    /// Geometric mean of the ratios; 1 of no pair.
    pub fn ratio(&self) -> f64 {
        if self.pairs == 0 { 1.0 } else { (self.log_sum / f64::from(self.pairs)).exp() }
    }

    /// At least half of the pairs say so beyond noise.
    pub fn is_beyond_noise(&self) -> bool {
        let agreeing = if self.ratio() < 1.0 { self.lower } else { self.higher };
        self.pairs > 0 && agreeing * 2 >= self.pairs
    }

    /// No pair has enough repetitions.
    pub fn is_unknown(&self) -> bool {
        self.pairs > 0 && self.unknown == self.pairs
    }

    fn add(&mut self, ratio: f64, change: Change) {
        self.pairs += 1;
        self.log_sum += ratio.ln();
        match change {
            Change::Lower => self.lower += 1,
            Change::Higher => self.higher += 1,
            Change::Unknown => self.unknown += 1,
            Change::WithinNoise => {}
        }
    }

    fn flipped(self) -> Tally {
        Tally { lower: self.higher, higher: self.lower, log_sum: -self.log_sum, ..self }
    }
}

/// What one value of a setting costs against another.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// Which setting.
    pub setting: Setting,
    /// The value with more transactions per second.
    pub better: String,
    /// The value with fewer.
    pub worse: String,
    /// IOPS of the worse against the better, all scenarios together.
    pub all: Tally,
    /// The same by scenario (index), where there is a pair.
    pub by_scenario: BTreeMap<usize, Tally>,
    /// CPU per MB/s of the worse against the better, geometric mean; `None` where it was not measured.
    pub cpu_ratio: Option<f64>,
}

/// The subject nearest to the baseline in one scenario: the one with the most transactions per second, as a geometric
/// mean over the numbers of threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// Index of the scenario.
    pub scenario: usize,
    /// Index of the subject.
    pub subject: usize,
    /// Its IOPS against the baseline's, geometric mean over threads.
    pub ratio: f64,
    /// The same by number of threads.
    pub by_threads: Vec<(u32, f64)>,
    /// Subjects that cannot be told from it beyond noise, with any number of threads.
    pub level: Vec<usize>,
    /// There are too few repetitions to tell it from the others.
    pub is_unknown: bool,
}

/// What a report says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Nearest over all scenarios, among subjects that were measured in every cell: subject, geometric mean of the ratio.
    pub overall: Option<(usize, f64)>,
    /// By scenario; one is missing where nothing but the baseline was measured.
    pub nearest: Vec<Nearest>,
    /// Settings, the largest effect first.
    pub effects: Vec<Effect>,
}

impl Findings {
    /// Of this report.
    pub fn of(figures: &Figures) -> Findings {
        let noise = noises(figures, Measure::Iops);
        let scenarios = 0..figures.report().scenarios.len();
        Findings {
            overall: overall(figures),
            nearest: scenarios.filter_map(|s| nearest(figures, s, noise[s])).collect(),
            effects: effects(figures, &noise),
        }
    }

    /// The setting with the largest effect over all scenarios that is not noise.
    pub fn largest(&self) -> Option<&Effect> {
        self.effects.iter().find(|e| e.all.is_beyond_noise() || e.all.is_unknown())
    }

    /// The same in one scenario. Its ratio may be above 1: the value that is worse over all can be better here.
    pub fn largest_in(&self, scenario: usize) -> Option<(&Effect, Tally)> {
        let here = |e: &'_ Effect| e.by_scenario.get(&scenario).copied();
        let told = self.effects.iter().filter_map(|e| Some((e, here(e)?)));
        told.filter(|(_, t)| t.is_beyond_noise() || t.is_unknown())
            .max_by(|a, b| size(&a.1).total_cmp(&size(&b.1)))
    }
}

/// How far from 1 a ratio is, either way.
fn size(tally: &Tally) -> f64 {
    tally.ratio().ln().abs()
}

/// Noise of a figure in each scenario.
pub fn noises(figures: &Figures, measure: Measure) -> Vec<Noise> {
    let report = figures.report();
    let of = |scenario: usize| {
        let cells = report.cells.iter().filter(move |c| c.scenario == scenario);
        Noise::pooled(cells.map(|c| c.values(measure)))
    };
    (0..report.scenarios.len()).map(of).collect()
}

fn others(report: &Report) -> impl Iterator<Item = usize> + use<> {
    let baseline = report.baseline;
    (0..report.subjects.len()).filter(move |s| *s != baseline)
}

/// Ratios of a subject in a scenario: one for each number of threads that the baseline has, or `None`.
fn ratios(figures: &Figures, scenario: usize, subject: usize) -> Option<Vec<(u32, f64)>> {
    let baseline = figures.report().baseline;
    let mut all = Vec::new();
    for threads in figures.threads_in(scenario) {
        if figures.ratio(scenario, baseline, threads).is_some() {
            let ratio = figures.ratio(scenario, subject, threads)?.median;
            all.push((threads, ratio));
        }
    }
    (!all.is_empty()).then_some(all)
}

fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.fold((0.0, 0.0), |(sum, n), r| (sum + r.ln(), n + 1.0));
    (sum / count).exp()
}

fn overall(figures: &Figures) -> Option<(usize, f64)> {
    let report = figures.report();
    let of = |subject: usize| {
        let mut all = Vec::new();
        for scenario in 0..report.scenarios.len() {
            // A scenario that the baseline could not do says nothing about anybody.
            if ratios(figures, scenario, report.baseline).is_some() {
                all.extend(ratios(figures, scenario, subject)?.into_iter().map(|r| r.1));
            }
        }
        (!all.is_empty()).then(|| (subject, geometric_mean(all.into_iter())))
    };
    others(report).filter_map(of).max_by(|a, b| a.1.total_cmp(&b.1))
}

fn nearest(figures: &Figures, scenario: usize, noise: Noise) -> Option<Nearest> {
    let report = figures.report();
    let of = |subject| {
        let by_threads = ratios(figures, scenario, subject)?;
        let ratio = geometric_mean(by_threads.iter().map(|r| r.1));
        Some((subject, ratio, by_threads))
    };
    let best = others(report).filter_map(of).max_by(|a, b| a.1.total_cmp(&b.1));
    let (subject, ratio, by_threads) = best?;
    let judge = |other: usize| {
        let values = |s, t| figures.values(scenario, s, t, Measure::Iops);
        let threads = by_threads.iter().map(|r| r.0);
        threads.map(|t| noise.judge(&values(subject, t), &values(other, t))).collect::<Vec<_>>()
    };
    let rivals: Vec<(usize, Vec<Change>)> =
        others(report).filter(|o| *o != subject).map(|o| (o, judge(o))).collect();
    let is_level = |r: &&(usize, Vec<Change>)| r.1.iter().all(|c| *c == Change::WithinNoise);
    let level = rivals.iter().filter(is_level).map(|r| r.0).collect();
    let all_unknown = |r: &(usize, Vec<Change>)| r.1.iter().all(|c| *c == Change::Unknown);
    let is_unknown = !rivals.is_empty() && rivals.iter().all(all_unknown);
    Some(Nearest { scenario, subject, ratio, by_threads, level, is_unknown })
}

/// The only setting in which two subjects differ, if there is exactly one.
fn only_difference(a: &Subject, b: &Subject) -> Option<Setting> {
    let mut differing = Setting::ALL.into_iter().filter(|s| s.of(a) != s.of(b));
    let first = differing.next()?;
    differing.next().is_none().then_some(first)
}

/// An effect while it is counted, from the first value (in the order of the alphabet) to the second.
#[derive(Default)]
struct Pending {
    by_scenario: BTreeMap<usize, Tally>,
    all: Tally,
    cpu: Vec<f64>,
}

fn effects(figures: &Figures, noise: &[Noise]) -> Vec<Effect> {
    let report = figures.report();
    let mut found: BTreeMap<(Setting, &str, &str), Pending> = BTreeMap::new();
    for (a, first) in report.subjects.iter().enumerate() {
        for (b, second) in report.subjects.iter().enumerate() {
            let Some(setting) = only_difference(first, second) else { continue };
            let (from, to) = (setting.of(first), setting.of(second));
            if from < to {
                let pending = found.entry((setting, from, to)).or_default();
                pending.add_pair(figures, noise, a, b);
            }
        }
    }
    let found = found.into_iter().filter(|(_, pending)| pending.all.pairs > 0);
    let mut effects: Vec<Effect> = found.map(|(key, pending)| pending.finish(key)).collect();
    effects.sort_by(|a, b| size(&b.all).total_cmp(&size(&a.all)));
    effects
}

impl Pending {
    fn add_pair(&mut self, figures: &Figures, noise: &[Noise], a: usize, b: usize) {
        for (scenario, noise) in noise.iter().enumerate() {
            for threads in figures.threads_in(scenario) {
                let values = |s| figures.values(scenario, s, threads, Measure::Iops);
                let median = |s, m| {
                    figures.spread(scenario, s, threads, m).map(|s| s.median).filter(|m| *m > 0.0)
                };
                if let (Some(x), Some(y)) = (median(a, Measure::Iops), median(b, Measure::Iops)) {
                    let change = noise.judge(&values(a), &values(b));
                    self.all.add(y / x, change);
                    self.by_scenario.entry(scenario).or_default().add(y / x, change);
                }
                let cpu = |s| median(s, Measure::CpuPerMb);
                self.cpu.extend(cpu(a).zip(cpu(b)).map(|(x, y)| y / x));
            }
        }
    }

    fn finish(self, (setting, from, to): (Setting, &str, &str)) -> Effect {
        let cpu = (!self.cpu.is_empty()).then(|| geometric_mean(self.cpu.iter().copied()));
        let mut effect = Effect {
            setting,
            better: from.to_owned(),
            worse: to.to_owned(),
            all: self.all,
            by_scenario: self.by_scenario,
            cpu_ratio: cpu,
        };
        if effect.all.ratio() > 1.0 {
            std::mem::swap(&mut effect.better, &mut effect.worse);
            effect.all = effect.all.flipped();
            effect.by_scenario.values_mut().for_each(|t| *t = t.flipped());
            effect.cpu_ratio = effect.cpu_ratio.map(f64::recip);
        }
        effect
    }
}

impl Effect {
    /// In words, for all scenarios together.
    pub fn sentence(&self, report: &Report) -> String {
        let mut text = format!(
            "{} {} instead of {}: {} transactions/s",
            self.setting.name(),
            self.worse,
            self.better,
            fewer(self.all.ratio())
        );
        let worst = self.by_scenario.iter().min_by(|a, b| a.1.ratio().total_cmp(&b.1.ratio()));
        if let Some((scenario, tally)) = worst.filter(|_| self.by_scenario.len() > 1) {
            let name = &report.scenarios[*scenario];
            text.push_str(&format!(", worst in {name} ({})", fewer(tally.ratio())));
        }
        text.push_str(&match () {
            () if self.all.is_unknown() => "; too few repetitions to tell it from noise".into(),
            () => format!("; beyond noise in {} of {} pairs", self.all.lower, self.all.pairs),
        });
        text
    }
}

fn fewer(ratio: f64) -> String {
    number::change(ratio).replace("as much", "as many").replace("less", "fewer")
}

impl Findings {
    /// All that is found, one sentence each, the most important first.
    pub fn sentences(&self, report: &Report) -> Vec<String> {
        let base = &report.subjects[report.baseline].name;
        let mut all = Vec::new();
        if let Some((subject, ratio)) = self.overall {
            let name = &report.subjects[subject].name;
            all.push(format!(
                "Nearest to {base} over all scenarios: {name}, {} of its transactions/s.",
                number::percent(ratio)
            ));
        }
        match self.largest() {
            Some(effect) => {
                all.push(format!("The setting that costs most: {}.", effect.sentence(report)));
            }
            None if self.effects.is_empty() => all.push(
                "No two subjects differ in one setting only, so no setting can be blamed.".into(),
            ),
            None => all.push("No single setting makes a difference beyond noise.".into()),
        }
        let scenarios = 0..report.scenarios.len();
        all.extend(scenarios.filter_map(|s| self.sentence_of(report, s)));
        all
    }

    /// Who is nearest in one scenario, and what costs most there; `None` if only the baseline was measured.
    pub fn sentence_of(&self, report: &Report, scenario: usize) -> Option<String> {
        let nearest = self.nearest.iter().find(|n| n.scenario == scenario)?;
        Some(nearest.sentence(report, self.largest_in(scenario)))
    }
}

impl Nearest {
    fn sentence(&self, report: &Report, largest: Option<(&Effect, Tally)>) -> String {
        let name = |s: usize| report.subjects[s].name.as_str();
        let mut text = format!(
            "{}: {} is nearest, {} of {}",
            report.scenarios[self.scenario],
            name(self.subject),
            number::percent(self.ratio),
            name(report.baseline)
        );
        let level: Vec<&str> = self.level.iter().map(|s| name(*s)).collect();
        match () {
            () if self.is_unknown => text.push_str(" (too few repetitions to tell from the next)"),
            () if !level.is_empty() => {
                text.push_str(&format!(" (level within noise: {})", level.join(", ")));
            }
            () => {}
        }
        if let Some((effect, tally)) = largest {
            text.push_str(&format!("; costs most: {}", blame(effect, &tally)));
        }
        text + "."
    }
}

/// Which value of a setting costs how much in one scenario: `format qed instead of raw (38 % fewer)`.
pub fn blame(effect: &Effect, tally: &Tally) -> String {
    let (worse, better, ratio) = if tally.ratio() <= 1.0 {
        (&effect.worse, &effect.better, tally.ratio())
    } else {
        (&effect.better, &effect.worse, tally.ratio().recip())
    };
    format!("{} {worse} instead of {better} ({})", effect.setting.name(), fewer(ratio))
}
