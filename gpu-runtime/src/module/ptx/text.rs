//! PTX text to declarations and instructions, nothing yet known of what they mean.
//!
//! Takes what nvcc and NVRTC write. Bounded in text, names, registers and instructions; a fault names its line.

use std::collections::BTreeMap;

use super::PtxError;

/// More than any kernel that a person wrote; what templates make of one stays below.
pub const TEXT_BYTES_MAX: usize = 8 << 20;
pub const INSTRUCTIONS_MAX: usize = 1 << 20;
const REGISTERS_MAX: u32 = 1 << 16;
const PARAMETERS_MAX: usize = 1024;
const NESTING_MAX: u32 = 64;

/// A module as it is written.
#[derive(Debug, Default)]
pub struct Text {
    /// `sm_70` and the like.
    pub target: String,
    pub address_bits: u32,
    pub kernels: Vec<Kernel>,
    /// `.global` and `.const` variables of the module.
    pub variables: Vec<Variable>,
}

/// One `.entry`.
#[derive(Debug, Default)]
pub struct Kernel {
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// Declared registers: name, and how many bits.
    pub registers: BTreeMap<String, u32>,
    /// `.shared` and `.local` variables.
    pub variables: Vec<Variable>,
    pub instructions: Vec<Instruction>,
    /// Where labels point: an index into the instructions.
    pub labels: BTreeMap<String, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    /// `.u64` is `u64`; an array of bytes is `b8`.
    pub kind: String,
    pub bytes: u64,
    pub align: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub bytes: u64,
    pub align: u64,
    /// What it holds at the start; shorter than `bytes` where the rest is zero.
    pub initial: Vec<u8>,
    /// `.extern .shared x[]`: as large as the launch says.
    pub is_dynamic: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
}

#[derive(Debug)]
pub struct Instruction {
    pub line: u32,
    /// `@p` or `@!p`.
    pub guard: Option<(String, bool)>,
    /// `add`, and `s32` of `add.s32`.
    pub name: String,
    pub suffixes: Vec<String>,
    pub operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a special register, a variable or a label.
    Name(String),
    /// `!p`
    Not(String),
    /// `p|q`
    Pair(String, String),
    /// An integer, or the bits of a `0f` or `0d` constant.
    Number(u64),
    /// `[base+offset]`
    Address { base: String, offset: i64 },
    /// `{a, b}`
    List(Vec<Operand>),
}

impl Instruction {
    /// As it was written, for messages.
    #[must_use]
    pub fn opcode(&self) -> String {
        std::iter::once(&self.name).chain(&self.suffixes).map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Number(u64),
    Punctuation(char),
}

/// Reads a module.
///
/// # Errors
/// [`PtxError::Malformed`] with the line.
pub fn read(text: &str) -> Result<Text, PtxError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(PtxError::malformed(
            0,
            format!("the module has {} bytes; at most {TEXT_BYTES_MAX}", text.len()),
        ));
    }
    let mut reader = Reader { tokens: tokens(text)?, at: 0 };
    let mut module = Text { address_bits: 64, ..Text::default() };
    while let Some(token) = reader.peek() {
        let Token::Word(word) = token.clone() else {
            return Err(reader.expected("a directive"));
        };
        match word {
            ".version" => {
                reader.next();
                reader.next();
            }
            ".target" => {
                reader.next();
                module.target = reader.word()?.to_owned();
                while reader.take(',') {
                    reader.next();
                }
            }
            ".address_size" => {
                reader.next();
                module.address_bits = u32::try_from(reader.number()?).unwrap_or(0);
            }
            ".file" => reader.skip_line(),
            ".section" => reader.skip_block()?,
            ".visible" | ".weak" | ".extern" | ".common" | ".entry" | ".func" | ".global" | ".const"
            | ".shared" => {
                reader.top(&mut module)?;
            }
            other => {
                let other = other.to_owned();
                return Err(reader.fault(format!("{other:?} is not supported here")));
            }
        }
    }
    Ok(module)
}

/// What a module declares: all that a launch on a card is checked against. Its code is the driver's to judge.
#[derive(Debug, Default)]
pub struct Outline {
    pub target: String,
    /// Kernels with their parameters.
    pub kernels: Vec<(String, Vec<Parameter>)>,
    /// Bytes of the module's own variables.
    pub variable_bytes: u64,
}

/// Reads a module's declarations, whatever its instructions are.
///
/// # Errors
/// [`PtxError::Malformed`] with the line.
pub fn outline(text: &str) -> Result<Outline, PtxError> {
    if text.len() > TEXT_BYTES_MAX {
        let fault = format!("the module has {} bytes; at most {TEXT_BYTES_MAX}", text.len());
        return Err(PtxError::malformed(0, fault));
    }
    let mut reader = Reader { tokens: tokens(text)?, at: 0 };
    let mut outline = Outline::default();
    let mut variables = Vec::new();
    while let Some(token) = reader.next() {
        match token {
            Token::Word(".target") => outline.target = reader.word()?.to_owned(),
            Token::Word(".entry") => {
                let name = reader.word()?.to_owned();
                let parameters = reader.parameters()?;
                if outline.kernels.iter().any(|(other, _)| *other == name) {
                    return Err(reader.fault(format!("the kernel {name:?} is there twice")));
                }
                outline.kernels.push((name, parameters));
                reader.skip_block()?;
            }
            Token::Word(".global") => reader.variables(Space::Global, false, &mut variables)?,
            Token::Word(".const") => reader.variables(Space::Const, false, &mut variables)?,
            Token::Punctuation('{') => {
                // A function's body.
                reader.at -= 1;
                reader.skip_block()?;
            }
            _ => {}
        }
    }
    outline.variable_bytes = variables.iter().map(|one| one.bytes).fold(0, u64::saturating_add);
    Ok(outline)
}

/// The text as tokens with their lines, comments left out.
fn tokens(text: &str) -> Result<Vec<(u32, Token<'_>)>, PtxError> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1u32);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.');
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            byte if byte.is_ascii_whitespace() => at += 1,
            b'/' if bytes[at..].starts_with(b"//") => {
                at += bytes[at..].iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end =
                    text[at..].find("*/").ok_or_else(|| PtxError::malformed(line, "a comment has no end"))?;
                line += u32::try_from(text[at..at + end].matches('\n').count()).unwrap_or(0);
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..]
                    .find('"')
                    .ok_or_else(|| PtxError::malformed(line, "a string has no end"))?;
                found.push((line, Token::Word(&text[at..at + end + 2])));
                at += end + 2;
            }
            byte if byte.is_ascii_digit() => {
                let length = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
                let word = &text[at..at + length];
                found.push((line, number(word).map_or(Token::Word(word), Token::Number)));
                at += length;
            }
            byte if is_word(byte) => {
                let length = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
                found.push((line, Token::Word(&text[at..at + length])));
                at += length;
            }
            byte if byte.is_ascii_punctuation() => {
                found.push((line, Token::Punctuation(char::from(byte))));
                at += 1;
            }
            _ => return Err(PtxError::malformed(line, "a character that PTX does not have")),
        }
    }
    Ok(found)
}

/// `12`, `0x1F`, `017`, `0b11`, with `U` behind; `0f3F800000`, `0d3FF0000000000000` as bits.
fn number(word: &str) -> Option<u64> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    if let Some(digits) = word.strip_prefix("0f").or(word.strip_prefix("0F")) {
        return if digits.len() == 8 { hex(digits) } else { None };
    }
    if let Some(digits) = word.strip_prefix("0d").or(word.strip_prefix("0D")) {
        return if digits.len() == 16 { hex(digits) } else { None };
    }
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(digits) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        return hex(digits);
    }
    if let Some(digits) = word.strip_prefix("0b") {
        return u64::from_str_radix(digits, 2).ok();
    }
    if word.len() > 1 && word.starts_with('0') {
        return u64::from_str_radix(&word[1..], 8).ok();
    }
    word.parse().ok()
}

/// Bytes of a type.
#[must_use]
pub fn size_of(kind: &str) -> Option<u64> {
    Some(match kind {
        "pred" => 1,
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

struct Reader<'a> {
    tokens: Vec<(u32, Token<'a>)>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.tokens.get(self.at).map(|(_, token)| token.clone());
        self.at += 1;
        token
    }

    fn line(&self) -> u32 {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(0, |(line, _)| *line)
    }

    fn fault(&self, text: impl Into<String>) -> PtxError {
        PtxError::malformed(self.line(), text)
    }

    fn expected(&self, what: &str) -> PtxError {
        match self.peek() {
            Some(token) => self.fault(format!("{what} is expected, not {token:?}")),
            None => self.fault(format!("{what} is expected, and the text ends")),
        }
    }

    fn word(&mut self) -> Result<&'a str, PtxError> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = *word;
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.expected("a name")),
        }
    }

    fn number(&mut self) -> Result<u64, PtxError> {
        match self.peek() {
            Some(Token::Number(number)) => {
                let number = *number;
                self.at += 1;
                Ok(number)
            }
            _ => Err(self.expected("a number")),
        }
    }

    fn is_at(&self, wanted: char) -> bool {
        self.peek() == Some(&Token::Punctuation(wanted))
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.is_at(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    fn require(&mut self, wanted: char) -> Result<(), PtxError> {
        if self.take(wanted) { Ok(()) } else { Err(self.expected(&format!("{wanted:?}"))) }
    }

    /// Everything on the line of a directive that only debuggers read.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.line() == line {
            self.at += 1;
        }
    }

    fn skip_block(&mut self) -> Result<(), PtxError> {
        while !self.is_at('{') {
            if self.next().is_none() {
                return Err(self.expected("{"));
            }
        }
        let mut depth = 0u32;
        loop {
            match self.next() {
                Some(Token::Punctuation('{')) => depth += 1,
                Some(Token::Punctuation('}')) if depth == 1 => return Ok(()),
                Some(Token::Punctuation('}')) => depth -= 1,
                None => return Err(self.expected("}")),
                _ => {}
            }
        }
    }

    /// A kernel, a function or a variable of the module.
    fn top(&mut self, module: &mut Text) -> Result<(), PtxError> {
        let mut is_extern = false;
        loop {
            match self.peek() {
                Some(Token::Word(".visible" | ".weak" | ".common")) => self.at += 1,
                Some(Token::Word(".extern")) => {
                    is_extern = true;
                    self.at += 1;
                }
                _ => break,
            }
        }
        match self.word()? {
            ".entry" => {
                let kernel = self.kernel()?;
                if module.kernels.iter().any(|other| other.name == kernel.name) {
                    return Err(self.fault(format!("the kernel {:?} is there twice", kernel.name)));
                }
                module.kernels.push(kernel);
                Ok(())
            }
            ".func" => {
                // A declaration alone is harmless until something calls it; calls are refused by name.
                while !self.is_at('{') && !self.is_at(';') {
                    if self.next().is_none() {
                        return Err(self.expected("a function's body"));
                    }
                }
                if self.take(';') { Ok(()) } else { self.skip_block() }
            }
            ".global" => self.variables(Space::Global, is_extern, &mut module.variables),
            ".const" => self.variables(Space::Const, is_extern, &mut module.variables),
            ".shared" => self.variables(Space::Shared, is_extern, &mut module.variables),
            other => Err(self.fault(format!("{other:?} is not supported here"))),
        }
    }

    fn kernel(&mut self) -> Result<Kernel, PtxError> {
        let mut kernel = Kernel { name: self.word()?.to_owned(), ..Kernel::default() };
        kernel.parameters = self.parameters()?;
        // .maxntid, .reqntid, .minnctapersm: hints to a compiler for the card.
        while !self.is_at('{') {
            if self.next().is_none() {
                return Err(self.expected("a kernel's body"));
            }
        }
        self.require('{')?;
        self.body(&mut kernel, 0)?;
        Ok(kernel)
    }

    fn parameters(&mut self) -> Result<Vec<Parameter>, PtxError> {
        let mut parameters = Vec::new();
        if self.take('(') {
            while !self.take(')') {
                parameters.push(self.parameter()?);
                if parameters.len() > PARAMETERS_MAX {
                    return Err(self.fault(format!("more than {PARAMETERS_MAX} parameters")));
                }
                self.take(',');
            }
        }
        Ok(parameters)
    }

    fn parameter(&mut self) -> Result<Parameter, PtxError> {
        let (mut kind, mut align) = ("", None);
        loop {
            match self.word()? {
                ".param" | ".ptr" | ".global" | ".const" | ".shared" => {}
                ".align" => align = Some(self.number()?),
                word => match word.strip_prefix('.').filter(|word| size_of(word).is_some()) {
                    Some(found) => kind = found,
                    None if kind.is_empty() => {
                        return Err(self.fault(format!("{word:?} is no type of a parameter")));
                    }
                    None => {
                        let size = size_of(kind).unwrap_or(1);
                        let count = if self.take('[') {
                            let count = self.number()?;
                            self.require(']')?;
                            count
                        } else {
                            1
                        };
                        let bytes = count.checked_mul(size).filter(|bytes| *bytes <= 4096);
                        let bytes = bytes.ok_or_else(|| self.fault("a parameter of more than 4096 bytes"))?;
                        let align = align.unwrap_or(size);
                        if !align.is_power_of_two() || align > 4096 {
                            return Err(self.fault(format!("an alignment of {align}")));
                        }
                        return Ok(Parameter { name: word.to_owned(), kind: kind.to_owned(), bytes, align });
                    }
                },
            }
        }
    }

    /// `.align 4 .b8 name[1024] = {1, 2};`, after the space.
    fn variables(&mut self, space: Space, is_extern: bool, into: &mut Vec<Variable>) -> Result<(), PtxError> {
        let (mut kind, mut align) = ("", None);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.number()?),
                ".v2" | ".v4" => return Err(self.fault("variables of vectors are not supported")),
                word => match word.strip_prefix('.').filter(|word| size_of(word).is_some()) {
                    Some(found) => kind = found,
                    None => break word,
                },
            }
        };
        let size = size_of(kind).ok_or_else(|| self.fault(format!("the variable {name:?} has no type")))?;
        let (mut count, mut is_dynamic) = (1u64, false);
        while self.take('[') {
            if self.take(']') {
                is_dynamic = true;
                continue;
            }
            let length = self.number()?;
            count = count.checked_mul(length).ok_or_else(|| self.fault("a variable without end"))?;
            self.require(']')?;
        }
        let bytes = count.checked_mul(size).filter(|bytes| *bytes <= 1 << 32);
        let bytes = bytes.ok_or_else(|| self.fault("a variable of more than 4 GiB"))?;
        let mut initial = Vec::new();
        if self.take('=') {
            let is_list = self.take('{');
            loop {
                let is_negative = self.take('-');
                let value = self.number()?;
                let value = if is_negative { value.wrapping_neg() } else { value };
                initial.extend_from_slice(&value.to_le_bytes()[..size as usize]);
                if !is_list || !self.take(',') {
                    break;
                }
            }
            if is_list {
                self.require('}')?;
            }
        }
        self.require(';')?;
        let align = align.unwrap_or(size);
        if !align.is_power_of_two() || align > 1 << 16 || initial.len() as u64 > bytes {
            return Err(self.fault(format!("the variable {name:?} has a wrong alignment or too many values")));
        }
        let is_dynamic = is_dynamic || (is_extern && space == Space::Shared);
        let bytes = if is_dynamic { 0 } else { bytes };
        into.push(Variable { name: name.to_owned(), space, bytes, align, initial, is_dynamic });
        Ok(())
    }

    fn body(&mut self, kernel: &mut Kernel, nesting: u32) -> Result<(), PtxError> {
        if nesting > NESTING_MAX {
            return Err(self.fault("blocks are nested too deeply"));
        }
        loop {
            if self.take('}') {
                return Ok(());
            }
            if self.take('{') {
                self.body(kernel, nesting + 1)?;
                continue;
            }
            let guard = if self.take('@') {
                let is_negated = self.take('!');
                Some((self.word()?.to_owned(), is_negated))
            } else {
                None
            };
            let line = self.line();
            let word = self.word()?;
            match word {
                ".reg" => self.registers(kernel)?,
                ".shared" => self.variables(Space::Shared, false, &mut kernel.variables)?,
                ".local" => self.variables(Space::Local, false, &mut kernel.variables)?,
                ".loc" => self.skip_line(),
                ".pragma" => {
                    while !self.take(';') {
                        if self.next().is_none() {
                            return Err(self.expected(";"));
                        }
                    }
                }
                word if word.starts_with('.') => {
                    return Err(self.fault(format!("{word:?} is not supported here")));
                }
                word if guard.is_none() && self.take(':') => {
                    if kernel.labels.insert(word.to_owned(), kernel.instructions.len()).is_some() {
                        return Err(self.fault(format!("the label {word:?} is there twice")));
                    }
                }
                word => {
                    let mut parts = word.split('.').map(str::to_owned);
                    let name = parts.next().unwrap_or_default();
                    let suffixes = parts.collect();
                    let operands = self.operands()?;
                    kernel.instructions.push(Instruction { line, guard, name, suffixes, operands });
                    if kernel.instructions.len() > INSTRUCTIONS_MAX {
                        return Err(self.fault(format!("more than {INSTRUCTIONS_MAX} instructions")));
                    }
                }
            }
        }
    }

    /// `.b32 %r<10>;` or `.pred p, q;`
    fn registers(&mut self, kernel: &mut Kernel) -> Result<(), PtxError> {
        let word = self.word()?;
        let kind = word.strip_prefix('.').unwrap_or_default();
        let bits = match (kind, size_of(kind)) {
            ("pred", _) => 1,
            (_, Some(bytes)) => u32::try_from(bytes * 8).unwrap_or(64),
            (_, None) => return Err(self.fault(format!("registers of type {word:?} are not supported"))),
        };
        loop {
            let name = self.word()?;
            if self.take('<') {
                let count = self.number()?;
                self.require('>')?;
                let count = u32::try_from(count).ok().filter(|count| *count <= REGISTERS_MAX);
                let count =
                    count.ok_or_else(|| self.fault(format!("more than {REGISTERS_MAX} registers")))?;
                for index in 0..count {
                    kernel.registers.insert(format!("{name}{index}"), bits);
                }
            } else {
                kernel.registers.insert(name.to_owned(), bits);
            }
            if kernel.registers.len() > REGISTERS_MAX as usize {
                return Err(self.fault(format!("more than {REGISTERS_MAX} registers")));
            }
            if !self.take(',') {
                return self.require(';');
            }
        }
    }

    fn operands(&mut self) -> Result<Vec<Operand>, PtxError> {
        let mut operands = Vec::new();
        if self.take(';') {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand(0)?);
            if self.take(';') {
                return Ok(operands);
            }
            self.require(',')?;
        }
    }

    fn operand(&mut self, nesting: u32) -> Result<Operand, PtxError> {
        if nesting > 2 {
            return Err(self.fault("lists are nested too deeply"));
        }
        if self.take('{') {
            let mut list = Vec::new();
            while !self.take('}') {
                list.push(self.operand(nesting + 1)?);
                self.take(',');
            }
            return Ok(Operand::List(list));
        }
        if self.take('(') {
            let mut list = Vec::new();
            while !self.take(')') {
                list.push(self.operand(nesting + 1)?);
                self.take(',');
            }
            return Ok(Operand::List(list));
        }
        if self.take('!') {
            return Ok(Operand::Not(self.word()?.to_owned()));
        }
        if self.take('[') {
            let base = match self.peek() {
                Some(Token::Number(_)) => String::new(),
                _ => self.word()?.to_owned(),
            };
            let mut offset = 0;
            if base.is_empty() || self.take('+') || self.is_at('-') {
                let is_negative = self.take('-');
                let value =
                    i64::try_from(self.number()?).map_err(|_| self.fault("an offset out of range"))?;
                offset = if is_negative { -value } else { value };
            }
            self.require(']')?;
            return Ok(Operand::Address { base, offset });
        }
        if self.take('-') {
            return Ok(Operand::Number(self.number()?.wrapping_neg()));
        }
        if let Some(Token::Number(number)) = self.peek() {
            let number = *number;
            self.at += 1;
            return Ok(Operand::Number(number));
        }
        let name = self.word()?.to_owned();
        if self.take('|') {
            return Ok(Operand::Pair(name, self.word()?.to_owned()));
        }
        if self.take('+') {
            return Err(self.fault("sums of names are not supported as operands"));
        }
        Ok(Operand::Name(name))
    }
}
