//! One plot: rows with a name above and something drawn below, over a common axis.
//!
//! ```text
//!  name of the subject                    note
//!  |############|--|   label                      linear: bars from 0
//!  name of the subject                    note
//!  |      .:##:. o     <>      ^                  logarithmic: marks
//!  +------+------+------+------+
//!  0     10k    20k    30k    40k
//! ```
//!
//! It is drawn 360 units wide and shown at about that many pixels on a telephone and on a wide screen alike, so that
//! its text is always of the size of text. Colours come from the page's style sheet: one drawing serves light, dark and
//! print. That, a name for each row, and a title and description for those who cannot see it, are why this is not left
//! to a plotting library, whose SVG has its colours and measured texts fixed in it.

use super::escape::Text;
use crate::report::number;
use std::fmt::Write;

/// Units of a drawing from left to right.
const WIDTH: f64 = 360.0;
/// Where the axis begins: a line at its start is not cut off.
const LEFT: f64 = 2.0;
/// Units of a letter of the label behind a bar, in the widest of common fonts, and of the space before it.
const LABEL_LETTER: f64 = 7.9;
const LABEL_GAP: f64 = 6.0;
/// Units right of a logarithmic axis: half a tick's text.
const MARGIN: f64 = 14.0;
/// Units of a row.
const ROW: f64 = 38.0;
/// From a row's top to the base of its name, and to what is drawn, and how high that is.
const NAME_AT: f64 = 12.0;
const DRAWN_AT: f64 = 18.0;
const DRAWN_HIGH: f64 = 12.0;
/// Units of a letter of a name, on average, in the widest of common fonts.
const LETTER: f64 = 6.6;
/// Units between the texts of two ticks.
const TICK: f64 = 44.0;
/// Columns of a density.
const DENSITY_STEPS: u32 = 72;

/// From a figure to a place.
#[derive(Clone, Copy, Debug)]
pub enum Axis {
    /// From 0 to the first; the second is the units at its right that labels need.
    Linear(f64, f64),
    /// From the first to the second, both above 0.
    Log(f64, f64),
}

impl Axis {
    /// A linear axis over these values (of none, from 0 to 1), for bars with labels of up to so many letters.
    pub fn linear(values: impl Iterator<Item = f64>, letters: usize) -> Axis {
        let max = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        let room = LABEL_GAP + LABEL_LETTER * letters.clamp(4, 24) as f64;
        Axis::Linear(if max > 0.0 { max } else { 1.0 }, room)
    }

    /// A logarithmic axis over these values, of which those that are not above 0 are left out.
    pub fn log(values: impl Iterator<Item = f64>) -> Axis {
        let values = values.filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return Axis::Log(1.0, 10.0);
        }
        Axis::Log(low / 1.12, high * 1.12)
    }

    fn end(self) -> f64 {
        match self {
            Axis::Linear(_, room) => WIDTH - room,
            Axis::Log(..) => WIDTH - MARGIN,
        }
    }

    fn x(self, value: f64) -> f64 {
        let part = match self {
            Axis::Linear(max, _) => value / max,
            Axis::Log(low, high) => (value.max(low) / low).ln() / (high / low).ln(),
        };
        LEFT + part.clamp(0.0, 1.0) * (self.end() - LEFT)
    }

    /// Where lines go.
    fn ticks(self) -> Vec<f64> {
        match self {
            Axis::Linear(max, _) => {
                let rough = max / 4.0;
                let power = 10f64.powf(rough.log10().floor());
                let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|s| s * power);
                let step = steps.into_iter().find(|s| *s >= rough * 0.999).unwrap_or(rough);
                let all = (0..8u32).map(|n| f64::from(n) * step);
                all.take_while(|t| *t <= max * 1.0001).collect()
            }
            Axis::Log(low, high) => {
                let mut last = f64::NEG_INFINITY;
                let has_room = |t: &f64| {
                    let x = self.x(*t);
                    let has_room = x - last >= TICK;
                    last = if has_room { x } else { last };
                    has_room
                };
                log_ticks(low, high).into_iter().filter(has_room).collect()
            }
        }
    }
}

/// Round figures: powers of ten, and what is between them where there are few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let digits: &[f64] = match decades {
        d if d > 2.5 => &[1.0],
        d if d > 1.2 => &[1.0, 3.0],
        d if d > 0.5 => &[1.0, 2.0, 5.0],
        d if d > 0.25 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        _ => &[1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    };
    let first = low.log10().floor();
    let powers = (0..40u32).map(|n| 10f64.powf(first + f64::from(n))).take_while(|p| *p <= high);
    let all = powers.flat_map(|p| digits.iter().map(move |d| d * p));
    all.filter(|t| *t >= low && *t <= high).collect()
}

/// What the shape of a mark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// An upright line.
    Line,
}

impl Shape {
    /// Distinct ones for a list of things; they repeat after five.
    pub fn nth(n: usize) -> Shape {
        [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Line][n % 5]
    }

    /// Drawn around a middle.
    pub fn draw(self, x: f64, y: f64) -> String {
        match self {
            Shape::Circle => {
                format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>")
            }
            Shape::Square => {
                let (x, y) = (x - 4.5, y - 4.5);
                format!("<rect class=\"mark\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"9\" height=\"9\"/>")
            }
            Shape::Triangle => path(&format!("M{x:.1} {:.1}l5.5 10h-11z", y - 5.5)),
            Shape::Diamond => path(&format!("M{x:.1} {:.1}l6 6l-6 6l-6-6z", y - 6.0)),
            Shape::Line => path(&format!("M{:.1} {:.1}h4v13h-4z", x - 2.0, y - 6.5)),
        }
    }
}

fn path(d: &str) -> String {
    format!("<path class=\"mark\" d=\"{d}\"/>")
}

/// How a bar's part is filled, its colour aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The plain colour.
    Plain,
    /// With stripes.
    Hatched,
    /// With dots.
    Dotted,
}

impl Fill {
    /// Distinct ones for a list of things; they repeat after three.
    pub fn nth(n: usize) -> Fill {
        [Fill::Plain, Fill::Hatched, Fill::Dotted][n % 3]
    }

    /// The pattern laid over the colour: its name in [`PATTERNS`].
    pub fn pattern(self) -> Option<&'static str> {
        match self {
            Fill::Plain => None,
            Fill::Hatched => Some("hatch"),
            Fill::Dotted => Some("dots"),
        }
    }
}

/// Patterns that every drawing of the page may use; goes into the page once.
pub const PATTERNS: &str = "<svg class=\"defs\" aria-hidden=\"true\" focusable=\"false\"><defs>\
<pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path class=\"hatch\" d=\"M1 0v6\"/></pattern>\
<pattern id=\"dots\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\"><circle class=\"dots\" cx=\"2.5\" cy=\"2.5\" r=\"1.2\"/></pattern>\
</defs></svg>\n";

/// A plot while it is drawn.
#[derive(Debug)]
pub struct Panel {
    id: String,
    title: String,
    description: String,
    axis: Axis,
    tick: fn(f64) -> String,
    body: String,
    rows: u32,
    base: Option<f64>,
}

impl Panel {
    /// An empty one. `id` is unique in the page; `description` says in words what is to be seen.
    pub fn new(id: String, title: String, description: String, axis: Axis) -> Panel {
        let body = String::new();
        let tick = number::short;
        Panel { id, title, description, axis, tick, body, rows: 0, base: None }
    }

    /// How the axis is labelled.
    pub fn with_ticks(mut self, tick: fn(f64) -> String) -> Panel {
        self.tick = tick;
        self
    }

    /// A line through all rows at what the others are compared with.
    pub fn with_base(mut self, value: f64) -> Panel {
        self.base = Some(value);
        self
    }

    fn top(&self) -> f64 {
        f64::from(self.rows - 1) * ROW
    }

    /// Begins a row: its name, and at the right a short text. What is drawn next goes below it.
    pub fn row(&mut self, name: &str, note: &str) {
        self.rows += 1;
        let y = self.top() + NAME_AT;
        let room = WIDTH - 6.0 - LETTER * note.chars().count() as f64;
        let name = Shown::new(name, room);
        let _ = write!(self.body, "<text x=\"0\" y=\"{y}\">{}</text>", Text(&name.0));
        if !note.is_empty() {
            let note = Text(note);
            let _ = write!(
                self.body,
                "<text class=\"value end\" x=\"{WIDTH}\" y=\"{y}\">{note}</text>"
            );
        }
    }

    /// A bar of parts (value, colour, fill) from 0 on, the range of its end, and a label behind it.
    pub fn bar(&mut self, parts: &[(f64, usize, Fill)], range: Option<(f64, f64)>, label: &str) {
        let y = self.top() + DRAWN_AT;
        let mut from = 0.0;
        for (value, colour, fill) in parts {
            let (x, end) = (self.axis.x(from), self.axis.x(from + value));
            // Something that is there is seen, however little.
            let wide = (end - x).max(if *value > 0.0 { 1.0 } else { 0.0 });
            let place =
                format!("x=\"{x:.1}\" y=\"{y}\" width=\"{wide:.1}\" height=\"{DRAWN_HIGH}\"");
            let _ = write!(self.body, "<rect class=\"c{}\" {place}/>", colour % 7);
            if let Some(pattern) = fill.pattern() {
                let _ = write!(self.body, "<rect fill=\"url(#{pattern})\" {place}/>");
            }
            from += value;
        }
        let mut end = self.axis.x(from);
        let mid = y + DRAWN_HIGH / 2.0;
        if let Some((low, high)) = range {
            let (low, high) = (self.axis.x(low), self.axis.x(high));
            if high - low >= 1.5 {
                let _ = write!(
                    self.body,
                    "<path class=\"range\" d=\"M{low:.1} {mid}H{high:.1}M{low:.1} {:.1}v6M{high:.1} {:.1}v6\"/>",
                    mid - 3.0,
                    mid - 3.0
                );
            }
            end = end.max(high);
        }
        let (x, base) = (end + LABEL_GAP, y + DRAWN_HIGH - 2.0);
        let label = Text(label);
        let _ = write!(self.body, "<text class=\"value\" x=\"{x:.1}\" y=\"{base}\">{label}</text>");
    }

    /// The line that marks sit on.
    pub fn track(&mut self, low: f64, high: f64) {
        let (low, high, y) = (self.axis.x(low), self.axis.x(high), self.middle());
        let _ = write!(self.body, "<path class=\"track\" d=\"M{low:.1} {y}H{high:.1}\"/>");
    }

    /// A mark at a value, with what it says when pointed at.
    pub fn mark(&mut self, value: f64, shape: Shape, colour: usize, says: &str) {
        let (x, y) = (self.axis.x(value), self.middle());
        let drawn = shape.draw(x, y);
        let says = Text(says);
        let _ = write!(self.body, "<g class=\"c{}\"><title>{says}</title>{drawn}</g>", colour % 7);
    }

    /// A distribution: bounds of buckets (ascending) and how many are in each; as high as it is dense.
    pub fn density(&mut self, buckets: &[(f64, u64)], colour: usize) {
        let Axis::Log(low, high) = self.axis else { return };
        let heights = densities(buckets, low, high);
        let most = heights.iter().copied().fold(0.0, f64::max);
        if most <= 0.0 {
            return;
        }
        let base = self.middle();
        let step = (self.axis.end() - LEFT) / f64::from(DENSITY_STEPS);
        // The square root, so that a thin tail is still seen.
        let high: Vec<f64> = heights.iter().map(|h| (h / most).sqrt() * 9.0).collect();
        let Some(first) = high.iter().position(|h| *h > 0.0) else { return };
        let last = high.iter().rposition(|h| *h > 0.0).unwrap_or(first);
        let mut d = format!("M{:.1} {base}", LEFT + step * first as f64);
        let mut before = 0.0;
        for up in &high[first..=last] {
            let _ = write!(d, "v{:.1}h{step:.2}", before - up);
            before = *up;
        }
        // The same downwards: symmetric about the line, so that it reads as one shape with the marks.
        let _ = write!(d, "V{base}");
        for up in high[first..=last].iter().rev() {
            let _ = write!(d, "V{:.1}h-{step:.2}", base + up);
        }
        let _ = write!(self.body, "<path class=\"cloud c{}\" d=\"{d}z\"/>", colour % 7);
    }

    /// Where there is nothing to draw: why.
    pub fn nothing(&mut self, why: &str, is_failure: bool) {
        let y = self.top() + DRAWN_AT + DRAWN_HIGH - 2.0;
        let class = if is_failure { "fail" } else { "tick" };
        let why = Shown::new(why, WIDTH - 6.0);
        let _ =
            write!(self.body, "<text class=\"{class}\" x=\"4\" y=\"{y}\">{}</text>", Text(&why.0));
    }

    fn middle(&self) -> f64 {
        self.top() + DRAWN_AT + DRAWN_HIGH / 2.0
    }

    /// The drawing as an element.
    pub fn finish(self) -> String {
        let bottom = f64::from(self.rows) * ROW + 2.0;
        let high = bottom + 17.0;
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {high}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            Text(&self.title),
            Text(&self.description),
            id = self.id,
        );
        for row in 0..self.rows {
            let (from, to) = (f64::from(row) * ROW + DRAWN_AT - 2.0, f64::from(row + 1) * ROW);
            let lines: String = self
                .axis
                .ticks()
                .into_iter()
                .map(|t| format!("M{:.1} {from}V{to}", self.axis.x(t)))
                .collect();
            let _ = write!(out, "<path class=\"grid\" d=\"{lines}\"/>");
            if let Some(x) = self.base.map(|b| self.axis.x(b)) {
                let _ = write!(out, "<path class=\"base\" d=\"M{x:.1} {from}V{to}\"/>");
            }
        }
        out.push_str(&self.body);
        for tick in self.axis.ticks() {
            let x = self.axis.x(tick);
            let text = trimmed(&(self.tick)(tick));
            // The first and the last would be cut off if they were centred on their lines.
            let (class, x) = match x {
                x if x < 16.0 => ("tick", 0.0),
                x if x > WIDTH - 24.0 => ("tick end", WIDTH),
                x => ("tick mid", x),
            };
            let y = high - 4.0;
            let _ = write!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y}\">{text}</text>");
        }
        out.push_str("</svg>");
        out
    }
}

/// A figure and its unit without the zeros at its end: `20k` for `20.0k`.
fn trimmed(text: &str) -> String {
    let is_figure = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '-');
    let (figure, unit) = text.split_at(text.find(|c| !is_figure(c)).unwrap_or(text.len()));
    let figure = match figure.contains('.') {
        true => figure.trim_end_matches('0').trim_end_matches('.'),
        false => figure,
    };
    format!("{figure}{unit}")
}

/// Counts spread over the steps of a logarithmic axis, each bucket evenly over the steps it covers.
fn densities(buckets: &[(f64, u64)], low: f64, high: f64) -> Vec<f64> {
    let steps = f64::from(DENSITY_STEPS);
    let place = |v: f64| (v.max(low) / low).ln() / (high / low).ln() * steps;
    let mut from: f64 = 0.0;
    let mut heights = vec![0.0; DENSITY_STEPS as usize];
    for (bound, count) in buckets {
        let to = place(*bound);
        if *count > 0 {
            // The first bucket begins nowhere in particular, and one that is narrow still fills a step.
            let start = if from == 0.0 { to - 1.0 } else { from.min(to - 1.0) }.max(0.0);
            let each = *count as f64 / (to - start).max(1.0);
            for (step, height) in (0..DENSITY_STEPS).zip(&mut heights) {
                let (a, b) = (f64::from(step).max(start), f64::from(step + 1).min(to));
                *height += each * (b - a).max(0.0);
            }
        }
        from = to;
    }
    heights
}

/// As much of a text as fits.
struct Shown(String);

impl Shown {
    fn new(text: &str, room: f64) -> Shown {
        let text = number::printable(text);
        // What is not Latin is mostly twice as wide.
        let wide = |c: char| if c.is_ascii() { LETTER } else { 2.0 * LETTER };
        let mut used = 0.0;
        let mut cut = 0;
        for (at, c) in text.char_indices() {
            used += wide(c);
            if used <= room - LETTER {
                cut = at + c.len_utf8();
            }
        }
        Shown(if used <= room { text } else { format!("{}…", &text[..cut]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_lie_on_the_axis_and_are_few() {
        for max in [0.013, 1.0, 7.0, 99.0, 100.0, 12_345.0, 3.3e9] {
            let ticks = Axis::Linear(max, 100.0).ticks();
            assert!((3..=5).contains(&ticks.len()), "{max} {ticks:?}");
            assert!(ticks.iter().all(|t| (0.0..=max * 1.001).contains(t)), "{max} {ticks:?}");
        }
        for (low, high) in [(0.7, 1.3), (0.2, 1.1), (9.0, 5e6), (20.0, 900.0), (0.95, 1.04)] {
            let ticks = Axis::Log(low, high).ticks();
            assert!((1..=6).contains(&ticks.len()), "{low} {high} {ticks:?}");
            assert!(ticks.iter().all(|t| (low..=high).contains(t)), "{ticks:?}");
        }
    }

    #[test]
    fn a_density_keeps_its_count() {
        let buckets = [(10.0, 5), (20.0, 0), (40.0, 90), (1000.0, 5)];
        let heights = densities(&buckets, 1.0, 2000.0);
        assert!((heights.iter().sum::<f64>() - 100.0).abs() < 1e-6, "{heights:?}");
        let at = |v: f64| v.ln() / 2000f64.ln() * f64::from(DENSITY_STEPS);
        let densest = heights.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert!((at(20.0) - 1.0..at(40.0)).contains(&(densest as f64)), "{densest}");
    }

    #[test]
    fn long_names_are_cut_and_strange_figures_stay_inside() {
        assert!(Shown::new(&"x".repeat(100), 300.0).0.ends_with("x…"));
        assert_eq!(
            ["20.0k", "100", "1.00 ms", "0.200"].map(trimmed),
            ["20k", "100", "1 ms", "0.2"]
        );
        assert_eq!(Shown::new("short", 300.0).0, "short");
        let axis = Axis::log([f64::NAN, 0.0, -1.0].into_iter());
        assert!((0.0..=WIDTH).contains(&axis.x(f64::MAX)));
        assert!((0.0..=WIDTH).contains(&Axis::linear(std::iter::empty(), 9).x(1e300)));
    }
}
