//! Lists and names that are read up to a limit and no further. What travels in a few bytes may take many in memory, so
//! the limit of the frame alone would not bound what a hostile one makes us allocate.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::limits::MAX_NAME_BYTES;

/// A list of at most `MAX` elements.
pub(crate) fn vec<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

/// A name of at most [`MAX_NAME_BYTES`].
pub(crate) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.len() > MAX_NAME_BYTES {
        return Err(D::Error::custom(format_args!(
            "a name of {} bytes; at most {MAX_NAME_BYTES}",
            name.len()
        )));
    }
    Ok(name)
}

struct AtMost<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<T>, A::Error> {
        let length = access.size_hint().unwrap_or(0);
        if length > MAX {
            return Err(A::Error::custom(format_args!("{length} elements; at most {MAX}")));
        }
        let mut elements = Vec::with_capacity(length);
        while let Some(element) = access.next_element()? {
            if elements.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} elements")));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}
