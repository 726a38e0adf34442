//! Replaces comments, strings and characters by spaces, so that what is left is code.

/// What the scanner is inside of.
enum State {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Text { hashes: Option<usize> },
}

/// The same text, lines and columns kept, with everything blank that is not code.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let (next, taken) = step(&state, rest, at.checked_sub(1).map(|i| chars[i]));
        let is_code = matches!((&state, &next), (State::Code, State::Code)) && taken == 1;
        for &c in &rest[..taken] {
            out.push(if c == '\n' || is_code { c } else { ' ' });
        }
        state = next;
        at += taken;
    }
    out
}

/// The state after the next characters, and how many of them that takes.
fn step(state: &State, rest: &[char], before: Option<char>) -> (State, usize) {
    match state {
        State::Code => step_code(rest, before),
        State::LineComment if rest[0] == '\n' => (State::Code, 1),
        State::LineComment => (State::LineComment, 1),
        State::BlockComment { depth } => match rest {
            ['*', '/', ..] if *depth == 1 => (State::Code, 2),
            ['*', '/', ..] => (State::BlockComment { depth: depth - 1 }, 2),
            ['/', '*', ..] => (State::BlockComment { depth: depth + 1 }, 2),
            _ => (State::BlockComment { depth: *depth }, 1),
        },
        State::Text { hashes } => match (hashes, rest) {
            (None, ['\\', _, ..]) => (State::Text { hashes: None }, 2),
            (None, ['"', ..]) => (State::Code, 1),
            (Some(n), ['"', tail @ ..]) if count_hashes(tail) >= *n => (State::Code, 1 + n),
            _ => (State::Text { hashes: *hashes }, 1),
        },
    }
}

fn step_code(rest: &[char], before: Option<char>) -> (State, usize) {
    let after_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['/', '/', ..] => (State::LineComment, 2),
        ['/', '*', ..] => (State::BlockComment { depth: 1 }, 2),
        ['"', ..] => (State::Text { hashes: None }, 1),
        ['b' | 'c', 'r', tail @ ..] | ['r', tail @ ..] if !after_word => {
            let (hashes, prefix) = (count_hashes(tail), rest.len() - tail.len());
            match tail.get(hashes) {
                Some('"') => (State::Text { hashes: Some(hashes) }, prefix + hashes + 1),
                _ => (State::Code, 1),
            }
        }
        // A character, not a lifetime: it is closed after one character or after an escape.
        ['\'', '\\', _, tail @ ..] => {
            let end = tail.iter().position(|&c| c == '\'').unwrap_or(0);
            (State::Code, 4 + end)
        }
        ['\'', _, '\'', ..] => (State::Code, 3),
        _ => (State::Code, 1),
    }
}

fn count_hashes(text: &[char]) -> usize {
    text.iter().take_while(|&&c| c == '#').count()
}

#[cfg(test)]
mod tests {
    use super::blank;

    #[test]
    fn what_is_not_code_is_blanked_and_lines_stay() {
        let cases = [
            ("a // b {\nc", "a       \nc"),
            ("a /* { /* } */ \n } */ c", "a              \n      c"),
            ("f(\"}\\\"{\") + 1", "f(      ) + 1"),
            ("r#\"{\"# + x", "       + x"),
            ("br\"\\\" x", "      x"),
            ("'{' + b'}' + '\\'' + '\\u{7d}'", "    + b    +      +         "),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("for x in r {}", "for x in r {}"),
        ];
        for (text, code) in cases {
            let out = blank(text);
            assert_eq!(out.trim_end(), code.trim_end(), "{text}");
            assert_eq!(out.chars().count(), text.chars().count(), "{text}");
        }
    }
}
