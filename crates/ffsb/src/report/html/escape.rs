//! Text from outside, made harmless in HTML: in an element, in a quoted attribute, in SVG.

use crate::report::number::printable;
use std::fmt;

/// A text that shows as it is, whatever is in it.
pub struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in printable(self.0).chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => fmt::Write::write_char(f, c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_element_or_attribute() {
        let hostile = "<script>alert('x')</script>\" onload=\"a&b\u{0}\u{202e}";
        let shown = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload=&quot;a&amp;b\\u{0}\\u{202e}";
        assert_eq!(Text(hostile).to_string(), shown);
    }
}
