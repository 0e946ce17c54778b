//! Writes BTF, type by type.

/// A growing set of types. Each function gives the new type's number.
pub struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    first_type: u32,
    first_string: u32,
    count: u32,
}

/// A member: name ("" for none), type, offset in bits, and bits if it is a bitfield.
pub type Member<'a> = (&'a str, u32, u32, u32);

impl Types {
    pub fn new() -> Types {
        Types {
            types: Vec::new(),
            strings: vec![0],
            first_type: 1,
            first_string: 0,
            count: 0,
        }
    }

    /// Types that go on where `base` ends.
    pub fn split(base: &Types) -> Types {
        Types {
            types: Vec::new(),
            strings: Vec::new(),
            first_type: base.first_type + base.count,
            first_string: base.strings.len() as u32,
            count: 0,
        }
    }

    pub fn blob(&self) -> Vec<u8> {
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            blob.extend_from_slice(&word.to_le_bytes());
        }
        blob.extend_from_slice(&self.types);
        blob.extend_from_slice(&self.strings);
        blob
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32 + self.first_string;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(
        &mut self,
        name: &str,
        kind: u32,
        vlen: usize,
        flag: bool,
        last: u32,
        rest: &[u32],
    ) -> u32 {
        let name = self.name(name);
        self.add_named_at(name, kind, vlen, flag, last, rest)
    }

    fn add_named_at(
        &mut self,
        name: u32,
        kind: u32,
        vlen: usize,
        flag: bool,
        last: u32,
        rest: &[u32],
    ) -> u32 {
        let info = kind << 24 | vlen as u32 | u32::from(flag) << 31;
        for word in [name, info, last].iter().chain(rest) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.first_type + self.count - 1
    }

    pub fn int(&mut self, name: &str, size: u32, signed: bool) -> u32 {
        let encoding = (u32::from(signed) << 24) | (size * 8);
        self.add(name, 1, 0, false, size, &[encoding])
    }

    /// An integer type of fewer bits than its bytes: a bitfield in the old style.
    pub fn old_bitfield(&mut self, size: u32, bits: u32) -> u32 {
        self.add("unsigned int", 1, 0, false, size, &[bits])
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.add("", 2, 0, false, to, &[])
    }

    pub fn array(&mut self, element: u32, count: u32) -> u32 {
        self.add("", 3, 0, false, 0, &[element, 1, count])
    }

    pub fn structure(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.record(4, name, size, members)
    }

    pub fn union(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.record(5, name, size, members)
    }

    fn record(&mut self, kind: u32, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let flag = members.iter().any(|member| member.3 != 0);
        let rest: Vec<u32> = members
            .iter()
            .flat_map(|&(name, ty, at, bits)| [self.name(name), ty, at | bits << 24])
            .collect();
        self.add(name, kind, members.len(), flag, size, &rest)
    }

    pub fn enumeration(&mut self, name: &str, signed: bool, values: &[(&str, i32)]) -> u32 {
        let rest: Vec<u32> = values
            .iter()
            .flat_map(|&(name, value)| [self.name(name), value as u32])
            .collect();
        self.add(name, 6, values.len(), signed, 4, &rest)
    }

    pub fn enumeration64(&mut self, name: &str, values: &[(&str, u64)]) -> u32 {
        let rest: Vec<u32> = values
            .iter()
            .flat_map(|&(name, value)| [self.name(name), value as u32, (value >> 32) as u32])
            .collect();
        self.add(name, 19, values.len(), false, 8, &rest)
    }

    pub fn forward(&mut self, name: &str) -> u32 {
        self.add(name, 7, 0, false, 0, &[])
    }

    pub fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.add(name, 8, 0, false, of, &[])
    }

    /// volatile 9, const 10, restrict 11, type tag 18
    pub fn qualified(&mut self, kind: u32, of: u32) -> u32 {
        let name = if kind == 18 { "rcu" } else { "" };
        self.add(name, kind, 0, false, of, &[])
    }

    /// One of each kind that is no value in memory: function prototype, function, variable, section,
    /// float, declaration tag.
    pub fn others(&mut self, int: u32) {
        let parameter = self.name("arg");
        let prototype = self.add("", 13, 1, false, int, &[parameter, int]);
        let function = self.add("do_it", 12, 1, false, prototype, &[]);
        let variable = self.add("jiffies", 14, 0, false, int, &[1]);
        self.add(".data", 15, 1, false, 8, &[variable, 0, 8]);
        self.add("double", 16, 0, false, 8, &[]);
        self.add("bpf", 17, 0, false, function, &[u32::MAX]);
    }
}
