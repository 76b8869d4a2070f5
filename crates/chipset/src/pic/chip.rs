//! One 8259A.

/// Which initialization command word comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expecting {
    /// None: the chip takes operation command words.
    Operation,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A with its edge/level control register.
#[derive(Debug, Clone)]
pub(super) struct I8259 {
    master: bool,
    /// Levels of the inputs.
    lines: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    /// Latched edges.
    edges: u8,
    imr: u8,
    isr: u8,
    /// The input of highest priority; the others follow in circular order.
    top: u8,
    vector_base: u8,
    expecting: Expecting,
    icw4_follows: bool,
    single: bool,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    special_fully_nested: bool,
    auto_eoi: bool,
    rotate_in_auto_eoi: bool,
}

impl I8259 {
    pub(super) fn new(master: bool) -> Self {
        Self {
            master,
            lines: 0,
            elcr: 0,
            edges: 0,
            imr: 0,
            isr: 0,
            top: 0,
            vector_base: 0,
            expecting: Expecting::Operation,
            icw4_follows: false,
            single: false,
            read_isr: false,
            poll: false,
            special_mask: false,
            special_fully_nested: false,
            auto_eoi: false,
            rotate_in_auto_eoi: false,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.master) };
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.edges &= !value;
    }

    pub(super) fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level && self.lines & bit == 0 {
            self.edges |= bit & !self.elcr;
        }
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    fn irr(&self) -> u8 {
        self.edges | self.lines & self.elcr
    }

    /// The input of highest priority among `inputs`, as its distance from the top; 8 when there is none.
    fn rank(&self, inputs: u8) -> u8 {
        inputs.rotate_right(self.top.into()).trailing_zeros() as u8
    }

    fn input_at(&self, rank: u8) -> u8 {
        (self.top + rank) & 7
    }

    /// The input that INT stands for now.
    pub(super) fn request(&self) -> Option<u8> {
        let rank = self.rank(self.irr() & !self.imr);
        let mut holding_back = self.isr;
        if self.special_mask {
            holding_back &= !self.imr;
        }
        if self.special_fully_nested && self.master {
            // The slave sorts out its own priorities.
            holding_back &= !(1 << super::CASCADE);
        }
        (rank < self.rank(holding_back)).then(|| self.input_at(rank))
    }

    /// The acknowledge cycle: the input and its vector; input 7 when nothing asks.
    pub(super) fn acknowledge(&mut self) -> (u8, u8) {
        let Some(input) = self.request() else { return (7, self.vector_base | 7) };
        let bit = 1 << input;
        self.edges &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_in_auto_eoi {
            self.top = (input + 1) & 7;
        }
        (input, self.vector_base | input)
    }

    pub(super) fn read(&mut self, offset: u16) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request() {
                Some(_) => 0x80 | self.acknowledge().0,
                None => 0,
            };
        }
        match (offset & 1, self.read_isr) {
            (0, false) => self.irr(),
            (0, true) => self.isr,
            _ => self.imr,
        }
    }

    pub(super) fn write(&mut self, offset: u16, value: u8) {
        match offset & 1 {
            0 if value & 0x10 != 0 => self.icw1(value),
            0 if value & 0x08 != 0 => self.ocw3(value),
            0 => self.ocw2(value),
            _ => self.write_data(value),
        }
    }

    fn icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            expecting: Expecting::Icw2,
            icw4_follows: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::new(self.master)
        };
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw4_follows { Expecting::Icw4 } else { Expecting::Operation };
        match self.expecting {
            Expecting::Operation => self.imr = value,
            Expecting::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expecting = if self.single { after_icw3 } else { Expecting::Icw3 };
            }
            // The cascade is wired, so what software believes about it does not matter.
            Expecting::Icw3 => self.expecting = after_icw3,
            Expecting::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.expecting = Expecting::Operation;
            }
        }
    }

    /// End of interrupt and rotation (8259A "Operation Control Word 2").
    fn ocw2(&mut self, value: u8) {
        let input = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        match (eoi, specific) {
            (true, false) => {
                let rank = self.rank(self.isr);
                if rank < 8 {
                    let input = self.input_at(rank);
                    self.isr &= !(1 << input);
                    if rotate {
                        self.top = (input + 1) & 7;
                    }
                }
            }
            (true, true) => {
                self.isr &= !(1 << input);
                if rotate {
                    self.top = (input + 1) & 7;
                }
            }
            (false, true) if rotate => self.top = (input + 1) & 7,
            (false, true) => {}
            (false, false) => self.rotate_in_auto_eoi = rotate,
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 4 != 0 {
            self.poll = true;
        }
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
    }
}
