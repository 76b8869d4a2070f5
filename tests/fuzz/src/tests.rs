//! Each target over its seeds and some mutations, so that one that is broken is noticed without a fuzzer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::{TARGETS, Target, find};

/// How long each target is mutated, at most, and how often.
const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5_000;

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(input.len() + 1);
        match random.below(4) {
            0 => input.insert(at, random.below(256) as u8),
            1 => input.truncate(at),
            2 => drop(input.splice(at..(at + random.below(9)).min(input.len()), [])),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

fn smoke(target: &Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has seeds", target.name);
    for seed in &seeds {
        assert!(seed.len() <= target.longest, "{}: a seed is too long", target.name);
        (target.run)(seed);
    }
    let mut random = Random(0x1234_5678);
    let start = Instant::now();
    for round in 0..ROUNDS {
        let mut input = seeds[round % seeds.len()].clone();
        mutate(&mut input, &mut random);
        input.truncate(target.longest);
        (target.run)(&input);
        if start.elapsed() > TIME {
            break;
        }
    }
}

#[test]
fn every_target_takes_its_seeds_and_mutations_of_them() {
    TARGETS.iter().for_each(smoke);
}

#[test]
fn every_target_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len());
    assert!(names.iter().all(|name| find(name).is_some()));
}
