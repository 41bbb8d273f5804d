//! A machine for the pickles that `torch.save` makes of a state dict, and no others.
//!
//! It knows the operations of protocols 2 to 4 that such a pickle uses (Lib/pickletools.py describes
//! them). Nothing can be called but what rebuilds a tensor or an ordered dict, and that is done here.
//! Values are small and refer to texts in the pickle and to containers by number, so that what it
//! makes is never larger than a multiple of the pickle.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::dtype::Dtype;
use crate::error::{Place, Quoted, Result, StoreError};

/// The most dimensions of a tensor.
const MAX_RANK: usize = 64;

/// A value on the machine's stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float,
    /// A text: its bytes in the pickle.
    Text(Range<usize>),
    /// A tuple or list, by number.
    Sequence(usize),
    /// A dict, by number.
    Dict(usize),
    Global(Global),
    /// A storage, by number.
    Storage(usize),
    /// A tensor, by number.
    Tensor(usize),
}

/// A name that a state dict may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// The type of a storage.
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", storage) => Self::Storage(match storage {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// A storage: an entry `data/{key}` of the archive.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    /// A text of the pickle.
    pub(super) key: Range<usize>,
}

/// A view of a storage; numbers are elements.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) storage: usize,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// What a pickle made.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) root: Value,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
    texts: Vec<u8>,
}

impl Object {
    /// A text of the pickle.
    pub(super) fn text(&self, range: &Range<usize>) -> Option<&str> {
        std::str::from_utf8(self.texts.get(range.clone())?).ok()
    }
}

/// Runs a pickle.
pub(super) fn run(path: &Path, bytes: &[u8]) -> Result<Object> {
    let mut machine = Machine::new(path, bytes);
    let root = loop {
        if let Some(root) = machine.step()? {
            break root;
        }
    };
    let Machine { dicts, storages, tensors, .. } = machine;
    Ok(Object { root, dicts, storages, tensors, texts: bytes.to_vec() })
}

struct Machine<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// The place of the next operation.
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack where marks were set.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
}

impl<'a> Machine<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self {
            path,
            bytes,
            at: 0,
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
            sequences: vec![],
            dicts: vec![],
            storages: vec![],
            tensors: vec![],
        }
    }

    fn refuse<T>(&self, problem: impl Into<String>) -> Result<T> {
        Err(StoreError::malformed(self.path, Place::Byte(self.at as u64), problem))
    }

    fn damaged<T>(&self) -> Result<T> {
        self.refuse("the pickle is damaged; download the file again")
    }

    /// The next so many bytes.
    fn take(&mut self, count: usize) -> Result<Range<usize>> {
        match self.at.checked_add(count).filter(|end| *end <= self.bytes.len()) {
            Some(end) => {
                let start = std::mem::replace(&mut self.at, end);
                Ok(start..end)
            }
            None => self.damaged(),
        }
    }

    /// An unsigned number of up to 8 bytes.
    fn number(&mut self, bytes: usize) -> Result<u64> {
        let range = self.take(bytes)?;
        let digits = self.bytes.get(range).unwrap_or_default().iter().rev();
        Ok(digits.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A text behind its length.
    fn text(&mut self, bytes: usize) -> Result<Value> {
        let length = self.number(bytes)?;
        match usize::try_from(length) {
            Ok(length) => Ok(Value::Text(self.take(length)?)),
            Err(_) => self.damaged(),
        }
    }

    /// A text up to the end of the line.
    fn line(&mut self) -> Result<Range<usize>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(length) => {
                let line = self.take(length)?;
                self.take(1)?;
                Ok(line)
            }
            None => self.damaged(),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop().filter(|_| self.stack.len() >= floor) {
            Some(value) => Ok(value),
            None => self.damaged(),
        }
    }

    /// What was pushed after the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.damaged(),
        }
    }

    fn push_sequence(&mut self, values: Vec<Value>) {
        self.stack.push(Value::Sequence(self.sequences.len()));
        self.sequences.push(values);
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(vec![]);
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        match (u32::try_from(key), self.stack.last()) {
            (Ok(key), Some(value)) => {
                self.memo.insert(key, value.clone());
                Ok(())
            }
            _ => self.damaged(),
        }
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        match u32::try_from(key).ok().and_then(|key| self.memo.get(&key)) {
            Some(value) => {
                self.stack.push(value.clone());
                Ok(())
            }
            None => self.damaged(),
        }
    }

    /// Runs one operation; the result after the last.
    fn step(&mut self) -> Result<Option<Value>> {
        let operation = self.number(1)? as u8;
        match operation {
            // PROTO, FRAME: how the rest is written.
            0x80 | 0x95 => {
                self.take(if operation == 0x80 { 1 } else { 8 })?;
            }
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool(operation == 0x88)),
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(i64::from(number)));
            }
            b'K' | b'M' => {
                let number = self.number(if operation == b'K' { 1 } else { 2 })?;
                self.stack.push(Value::Int(number as i64));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Float);
            }
            b'X' | 0x8c => {
                let text = self.text(if operation == b'X' { 4 } else { 1 })?;
                self.stack.push(text);
            }
            b'q' | b'r' => {
                let key = self.number(if operation == b'q' { 1 } else { 4 })?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' | b'j' => {
                let key = self.number(if operation == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            b'c' | 0x93 => self.global(operation == b'c')?,
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => self.container(operation)?,
        }
        Ok(None)
    }

    /// Operations on tuples, lists and dicts.
    fn container(&mut self, operation: u8) -> Result<()> {
        match operation {
            b'}' => self.push_dict(),
            b']' | b')' => self.push_sequence(vec![]),
            b't' | b'l' => {
                let values = self.pop_mark()?;
                self.push_sequence(values);
            }
            0x85..=0x87 => {
                let mut values = vec![];
                for _ in 0x85..=operation {
                    values.push(self.pop()?);
                }
                values.reverse();
                self.push_sequence(values);
            }
            b'a' | b'e' => {
                let values = if operation == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                match self.stack.last() {
                    Some(Value::Sequence(list)) => match self.sequences.get_mut(*list) {
                        Some(list) => list.extend(values),
                        None => return self.damaged(),
                    },
                    _ => return self.damaged(),
                }
            }
            b's' | b'u' => {
                let values = match operation {
                    b's' => {
                        let value = self.pop()?;
                        vec![self.pop()?, value]
                    }
                    _ => self.pop_mark()?,
                };
                let (pairs, []) = values.as_chunks::<2>() else { return self.damaged() };
                let pairs = pairs.iter().map(|[key, value]| (key.clone(), value.clone()));
                match self.stack.last() {
                    Some(Value::Dict(dict)) => match self.dicts.get_mut(*dict) {
                        Some(dict) => dict.extend(pairs),
                        None => return self.damaged(),
                    },
                    _ => return self.damaged(),
                }
            }
            other => {
                let problem = format!(
                    "the pickle uses operation {other:#04x}, which saving a state dict does not; \
                     do not trust this file"
                );
                return self.refuse(problem);
            }
        }
        Ok(())
    }

    /// A whole number of any length, of which 8 bytes are as many as any here has.
    fn long(&mut self) -> Result<()> {
        let length = self.number(1)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > 8 {
            return self.refuse("the pickle holds a number beyond 64 bits");
        }
        let range = self.take(length)?;
        let bytes = self.bytes.get(range).unwrap_or_default();
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide.iter_mut().zip(bytes).for_each(|(wide, byte)| *wide = *byte);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    /// A name, on two lines or from the stack; it must be one that a state dict asks for.
    fn global(&mut self, on_lines: bool) -> Result<()> {
        let (module, name) = if on_lines {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop()?;
            match (self.pop()?, name) {
                (Value::Text(module), Value::Text(name)) => (module, name),
                _ => return self.damaged(),
            }
        };
        let text = |range: Range<usize>| {
            String::from_utf8_lossy(self.bytes.get(range).unwrap_or_default())
        };
        let (module, name) = (text(module), text(name));
        match Global::find(&module, &name) {
            Some(global) => {
                self.stack.push(Value::Global(global));
                Ok(())
            }
            None => {
                let asked = format!("{module}.{name}");
                let problem = format!(
                    "the pickle asks for {}, which is no part of a saved state dict; do not trust \
                     this file, or save its state dict alone",
                    Quoted(&asked)
                );
                self.refuse(problem)
            }
        }
    }

    fn sequence(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::Sequence(index) => self.sequences.get(*index).map(Vec::as_slice),
            _ => None,
        }
    }

    /// Whole numbers that are not negative, of as many dimensions as a tensor may have.
    fn sizes(&self, value: &Value) -> Option<Vec<u64>> {
        let size = |value: &Value| match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let sizes = self.sequence(value).filter(|sizes| sizes.len() <= MAX_RANK)?;
        sizes.iter().map(size).collect()
    }

    /// A persistent identity: `("storage", type, key, device, elements)`.
    fn storage(&mut self) -> Result<()> {
        let identity = self.pop()?;
        let storage = match self.sequence(&identity) {
            Some(
                [
                    Value::Text(kind),
                    Value::Global(Global::Storage(dtype)),
                    Value::Text(key),
                    Value::Text(_),
                    Value::Int(_),
                ],
            ) if self.bytes.get(kind.clone()) == Some(&b"storage"[..]) => {
                Storage { dtype: *dtype, key: key.clone() }
            }
            _ => return self.refuse("the pickle refers to something else than a storage"),
        };
        self.stack.push(Value::Storage(self.storages.len()));
        self.storages.push(storage);
        Ok(())
    }

    /// Calls what rebuilds a tensor or makes a dict.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, called) = (self.pop()?, self.pop()?);
        let Value::Global(called) = called else { return self.damaged() };
        let Some(arguments) = self.sequence(&arguments) else { return self.damaged() };
        match (called, arguments) {
            (Global::OrderedDict, []) => self.push_dict(),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => {
                let tensor = tensor.clone();
                self.stack.push(tensor);
            }
            (
                Global::RebuildTensor,
                [Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let offset = u64::try_from(*offset).ok();
                let view = offset.zip(self.sizes(shape)).zip(self.sizes(strides));
                let Some(((offset, shape), strides)) = view else { return self.damaged() };
                let tensor = Tensor { storage: *storage, offset, shape, strides };
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(tensor);
            }
            _ => return self.refuse("the pickle makes something else than tensors and dicts"),
        }
        Ok(())
    }

    /// Attributes of a dict, which is where modules keep their versions; nothing else has any.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => self.refuse("the pickle sets attributes of something else than a state dict"),
        }
    }
}
