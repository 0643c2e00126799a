//! Texts with `*` (any run), `?` (any one character) and, since version 2012-10-17, `${variables}`.

/// A text to compare with, compiled once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    /// Bytes before the first wildcard; `None`: it has none.
    fixed: Option<usize>,
    /// Set where the text names variables: what it consists of then.
    pieces: Option<Box<[Piece]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// With wildcards.
    Text(Box<str>),
    /// Characters that stand for themselves: `${*}`, `${?}`, `${$}`.
    Literal(char),
    Variable {
        key: Box<str>,
        default: Option<Box<str>>,
    },
}

/// What a pattern means to a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wildcards {
    Active,
    Literal,
}

impl Pattern {
    /// A variable without its closing brace is plain text, as AWS has it.
    pub fn new(text: &str, has_variables: bool) -> Self {
        let pieces = if has_variables && text.contains("${") { pieces(text) } else { None };
        Self { text: text.into(), fixed: text.find(['*', '?']), pieces }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn has_variables(&self) -> bool {
        self.pieces.is_some()
    }

    /// Whether `value` is meant. `lookup` gives a variable's value; a pattern with an unknown one means nothing.
    pub fn matches<'a>(
        &self,
        value: &str,
        wildcards: Wildcards,
        ignore_case: bool,
        lookup: &dyn Fn(&str) -> Option<&'a str>,
    ) -> bool {
        let is_wild = wildcards == Wildcards::Active;
        let Some(pieces) = &self.pieces else {
            return match (self.fixed.filter(|_| is_wild), ignore_case) {
                (None, false) => *self.text == *value,
                (None, true) => equal_ignoring_case(&self.text, value),
                (Some(fixed), false) => {
                    let (fixed, wild) = self.text.split_at(fixed);
                    value.strip_prefix(fixed).is_some_and(|rest| glob(wild, rest))
                }
                (Some(_), true) => glob(&self.text.to_lowercase(), &value.to_lowercase()),
            };
        };
        if !ignore_case && let Some(decided) = matches_before_runs(pieces, value, is_wild, lookup) {
            return decided;
        }
        let fold = |text: &str| if ignore_case { text.to_lowercase() } else { text.to_owned() };
        let mut units = Vec::with_capacity(self.text.len());
        for piece in pieces {
            match piece {
                Piece::Literal(one) => units.push(Unit::Char(*one)),
                Piece::Text(text) => units.extend(fold(text).chars().map(|one| match one {
                    '*' if is_wild => Unit::Run,
                    '?' if is_wild => Unit::One,
                    one => Unit::Char(one),
                })),
                Piece::Variable { key, default } => match lookup(key).or(default.as_deref()) {
                    Some(value) => units.extend(fold(value).chars().map(Unit::Char)),
                    None => return false,
                },
            }
        }
        let value: Vec<char> = fold(value).chars().collect();
        glob_units(&units, &value)
    }

    /// Whether every text that begins with `prefix` is certainly meant.
    pub fn covers<'a>(&self, prefix: &str, lookup: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        self.text.ends_with('*') && self.matches(prefix, Wildcards::Active, false, lookup)
    }

    /// Whether some text that begins with `prefix` may be meant: true where in doubt.
    pub fn may_meet(&self, prefix: &str) -> bool {
        self.has_variables() || glob_may_meet(self.text.as_bytes(), prefix.as_bytes())
    }

    /// As [`matches`](Self::matches), for patterns that AWS compares without variables: actions.
    pub fn matches_action(&self, action: &str) -> bool {
        if self.fixed.is_some() {
            glob_ignoring_ascii_case(self.text.as_bytes(), action.as_bytes())
        } else {
            self.text.eq_ignore_ascii_case(action)
        }
    }
}

/// Compares up to the first run, which mostly decides already; `None`: it does not.
fn matches_before_runs<'a>(
    pieces: &[Piece],
    value: &str,
    is_wild: bool,
    lookup: &dyn Fn(&str) -> Option<&'a str>,
) -> Option<bool> {
    let mut rest = value.chars();
    for piece in pieces {
        let is_met = match piece {
            Piece::Literal(one) => rest.next() == Some(*one),
            Piece::Variable { key, default } => match lookup(key).or(default.as_deref()) {
                Some(value) => value.chars().all(|one| rest.next() == Some(one)),
                None => false,
            },
            Piece::Text(text) => {
                let mut is_met = true;
                for one in text.chars() {
                    is_met = match one {
                        '*' if is_wild => return None,
                        '?' if is_wild => rest.next().is_some(),
                        one => rest.next() == Some(one),
                    };
                    if !is_met {
                        break;
                    }
                }
                is_met
            }
        };
        if !is_met {
            return Some(false);
        }
    }
    Some(rest.next().is_none())
}

fn equal_ignoring_case(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other) || one.to_lowercase() == other.to_lowercase()
}

fn pieces(text: &str) -> Option<Box<[Piece]>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut is_plain = true;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inner, behind)) = after.split_once('}') else { break };
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        is_plain = false;
        pieces.push(match inner {
            "*" => Piece::Literal('*'),
            "?" => Piece::Literal('?'),
            "$" => Piece::Literal('$'),
            _ => {
                let (key, default) = match inner.split_once(',') {
                    Some((key, default)) => (key, Some(default.trim().trim_matches('\'').into())),
                    None => (inner, None),
                };
                Piece::Variable { key: key.trim().to_ascii_lowercase().into(), default }
            }
        });
        rest = behind;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    (!is_plain).then(|| pieces.into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Char(char),
    One,
    Run,
}

fn glob_units(pattern: &[Unit], value: &[char]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut retry = None;
    while from < value.len() {
        match pattern.get(at) {
            Some(Unit::Run) => {
                retry = Some((at + 1, from));
                at += 1;
            }
            Some(Unit::One) => (at, from) = (at + 1, from + 1),
            Some(Unit::Char(one)) if *one == value[from] => (at, from) = (at + 1, from + 1),
            _ => match &mut retry {
                Some((after, begin)) => {
                    *begin += 1;
                    (at, from) = (*after, *begin);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|unit| *unit == Unit::Run)
}

/// Whether `value` has the shape of `pattern`. Worst case: product of their lengths; no allocation.
pub fn glob(pattern: &str, value: &str) -> bool {
    glob_by(pattern.as_bytes(), value.as_bytes(), |one, other| one == other)
}

fn glob_ignoring_ascii_case(pattern: &[u8], value: &[u8]) -> bool {
    glob_by(pattern, value, |one, other| one.eq_ignore_ascii_case(&other))
}

fn glob_by(pattern: &[u8], value: &[u8], is_same: impl Fn(u8, u8) -> bool) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while from < value.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, from));
                at += 1;
            }
            // One character: a lead byte and what continues it.
            Some(b'?') => (at, from) = (at + 1, next_char(value, from)),
            Some(one) if is_same(*one, value[from]) => (at, from) = (at + 1, from + 1),
            _ => match &mut retry {
                Some((after, begin)) => {
                    *begin = next_char(value, *begin);
                    // What follows the run can only begin where its first character stands.
                    if let Some(first) = pattern.get(*after).filter(|byte| !matches!(byte, b'*' | b'?')) {
                        match value[*begin..].iter().position(|byte| is_same(*first, *byte)) {
                            Some(further) => *begin += further,
                            None => return false,
                        }
                    }
                    (at, from) = (*after, *begin);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Whether the pattern may mean a text that begins with `prefix`; up to the first wildcard one begins the other.
fn glob_may_meet(pattern: &[u8], prefix: &[u8]) -> bool {
    let fixed = pattern.iter().position(|byte| matches!(byte, b'*' | b'?'));
    let head = &pattern[..fixed.unwrap_or(pattern.len())];
    let is_common = head.iter().zip(prefix).all(|(one, other)| one == other);
    // Without a wildcard the pattern is one text, which must be as long as the prefix.
    is_common && (fixed.is_some() || head.len() >= prefix.len())
}

fn next_char(value: &[u8], from: usize) -> usize {
    let continues = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
    from + 1 + value[from + 1..].iter().take_while(continues).count()
}
