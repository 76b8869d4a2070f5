//! Seconds since 1970 as the RTC's registers show them, and back.

/// Register B bit 2: binary instead of BCD.
pub(super) const BINARY: u8 = 1 << 2;
/// Register B bit 1: 24-hour instead of 12-hour.
pub(super) const HOURS_24: u8 = 1 << 1;
/// Bit 7 of the hours in 12-hour form.
const PM: u8 = 1 << 7;

const SECONDS_PER_DAY: i64 = 86_400;

/// The time registers as they read, in the form that register B asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TimeRegisters {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    /// Year of the century.
    pub(super) year: u8,
    pub(super) century: u8,
}

fn encode(value: i64, form: u8) -> u8 {
    let value = value.clamp(0, 99) as u8;
    if form & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
}

fn decode(value: u8, form: u8) -> i64 {
    i64::from(if form & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) })
}

fn encode_hour(hour: i64, form: u8) -> u8 {
    if form & HOURS_24 != 0 {
        return encode(hour, form);
    }
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    encode(twelve, form) | if hour >= 12 { PM } else { 0 }
}

fn decode_hour(value: u8, form: u8) -> i64 {
    if form & HOURS_24 != 0 {
        return decode(value, form);
    }
    decode(value & !PM, form) % 12 + if value & PM != 0 { 12 } else { 0 }
}

/// Second, minute and hour of `unix` seconds, as the alarm registers are compared with them.
pub(super) fn time_of_day(unix: i64, form: u8) -> [u8; 3] {
    let second = unix.rem_euclid(SECONDS_PER_DAY);
    [encode(second % 60, form), encode(second / 60 % 60, form), encode_hour(second / 3600, form)]
}

/// The registers at `unix` seconds.
pub(super) fn to_registers(unix: i64, form: u8) -> TimeRegisters {
    let days = unix.div_euclid(SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let [second, minute, hour] = time_of_day(unix, form);
    TimeRegisters {
        second,
        minute,
        hour,
        // 1 January 1970 was a Thursday.
        weekday: encode((days + 4).rem_euclid(7) + 1, form),
        day: encode(day, form),
        month: encode(month, form),
        year: encode(year.rem_euclid(100), form),
        century: encode(year.div_euclid(100), form),
    }
}

/// The seconds that the registers mean; impossible values are cut to possible ones. The day of the week follows from the date.
pub(super) fn from_registers(registers: &TimeRegisters, form: u8) -> i64 {
    let TimeRegisters { second, minute, hour, weekday: _, day, month, year, century } = *registers;
    let year = decode(century, form) * 100 + decode(year, form).min(99);
    let days = days_from_civil(year, decode(month, form).clamp(1, 12), decode(day, form).clamp(1, 31));
    let time =
        decode_hour(hour, form).min(23) * 3600 + decode(minute, form).min(59) * 60 + decode(second, form).min(59);
    days * SECONDS_PER_DAY + time
}

/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;
const DAYS_PER_ERA: i64 = 146_097;

/// Years are counted from March, so that the leap day is the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    era * DAYS_PER_ERA + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1 - EPOCH
}

/// Year, month and day of a day since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let (era, day) = ((days + EPOCH).div_euclid(DAYS_PER_ERA), (days + EPOCH).rem_euclid(DAYS_PER_ERA));
    let year = (day - day / 1460 + day / 36_524 - day / (DAYS_PER_ERA - 1)) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_six_centuries_survive_the_round_trip_in_every_form() {
        for form in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
            for step in 0..20_000 {
                let unix = -2_208_988_800 + step * 947_861;
                assert_eq!(from_registers(&to_registers(unix, form), form), unix, "form {form}");
            }
        }
    }

    #[test]
    fn a_leap_day_is_shown() {
        // 2024-02-29 13:07:09 UTC, a Thursday.
        let registers = to_registers(1_709_212_029, 0);
        let expected = TimeRegisters {
            second: 0x09,
            minute: 0x07,
            hour: 0x81,
            weekday: 5,
            day: 0x29,
            month: 2,
            year: 0x24,
            century: 0x20,
        };
        assert_eq!(registers, expected);
    }

    #[test]
    fn midnight_and_noon_are_twelve() {
        assert_eq!(time_of_day(0, 0)[2], 0x12);
        assert_eq!(time_of_day(12 * 3600, 0)[2], 0x92);
    }

    #[test]
    fn impossible_registers_do_no_harm() {
        let all =
            |b| TimeRegisters { second: b, minute: b, hour: b, weekday: b, day: b, month: b, year: b, century: b };
        for byte in 0..=0xff {
            for form in 0..8 {
                to_registers(from_registers(&all(byte), form), form);
            }
        }
    }
}
