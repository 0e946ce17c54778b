//! Damage to a file: to its fields, to any of its bytes, to its length.

use crate::fields::Field;
use crate::synth::Noise;

/// The file of a case; the same for the same case.
pub fn damage(sound: &[u8], fields: &[Field], case: usize, noise: &mut Noise) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    // Each field once with each of a few values, then whatever the dice say.
    match case % 4 {
        0 => {
            let field = fields[case / 4 % fields.len()];
            set(&mut bytes, field, sound, fields, noise);
        }
        1 => {
            for _ in 0..1 + noise.below(3) {
                let field = fields[noise.below(fields.len() as u64) as usize];
                set(&mut bytes, field, sound, fields, noise);
            }
        }
        2 => {
            for _ in 0..1 + noise.below(4) {
                blind(&mut bytes, noise);
            }
        }
        _ => {
            let field = fields[noise.below(fields.len() as u64) as usize];
            set(&mut bytes, field, sound, fields, noise);
            blind(&mut bytes, noise);
        }
    }
    match noise.below(12) {
        0 => bytes.truncate(noise.below(bytes.len() as u64 + 1) as usize),
        1 => {
            // Bytes are lost in the middle, as a broken transfer leaves it.
            let at = noise.below(bytes.len() as u64) as usize;
            let len = (noise.below(5000) as usize).min(bytes.len() - at);
            bytes.drain(at..at + len);
        }
        2 => {
            let at = noise.below(bytes.len() as u64) as usize;
            let more = vec![noise.next() as u8; noise.below(64) as usize];
            bytes.splice(at..at, more);
        }
        _ => {}
    }
    bytes
}

/// Puts a value into a field that a careless reader stumbles over.
fn set(bytes: &mut [u8], field: Field, sound: &[u8], fields: &[Field], noise: &mut Noise) {
    let old = get(sound, field);
    let bits = field.width as u32 * 8;
    let most = u64::MAX >> (64 - bits);
    let len = sound.len() as u64;
    let value = match noise.below(14) {
        0 => 0,
        1 => 1,
        2 => most - noise.below(4),
        3 => (most >> 1).wrapping_add(noise.below(3)).wrapping_sub(1),
        4 => (1u64 << noise.below(u64::from(bits)))
            .wrapping_add(noise.below(3))
            .wrapping_sub(1),
        5 => old.wrapping_add(1 + noise.below(8)),
        6 => old.wrapping_sub(1 + noise.below(8)),
        7 => old.wrapping_mul(1 + noise.below(64)),
        8 => old ^ 1 << noise.below(u64::from(bits)),
        9 => len.wrapping_add(noise.below(9)).wrapping_sub(4),
        10 => noise.below(len) & !0xfff,
        11 => get(sound, fields[noise.below(fields.len() as u64) as usize]),
        12 => most.wrapping_sub(len).wrapping_add(noise.below(0x4000)),
        _ => noise.next(),
    };
    let raw = match field.big_endian {
        true => (value << (64 - bits)).to_be_bytes(),
        false => value.to_le_bytes(),
    };
    bytes[field.at..field.at + field.width].copy_from_slice(&raw[..field.width]);
}

fn get(bytes: &[u8], field: Field) -> u64 {
    let raw = &bytes[field.at..field.at + field.width];
    let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    match field.big_endian {
        true => raw.iter().fold(0, fold),
        false => raw.iter().rev().fold(0, fold),
    }
}

/// Damage anywhere: bits, runs of bytes, and bytes of one place in another.
fn blind(bytes: &mut [u8], noise: &mut Noise) {
    let len = bytes.len() as u64;
    let at = noise.below(len) as usize;
    let run = |noise: &mut Noise, most: u64| (noise.below(most) as usize + 1).min(bytes.len() - at);
    match noise.below(6) {
        0 => bytes[at] ^= 1 << noise.below(8),
        1 => {
            let run = run(noise, 16);
            bytes[at..at + run].fill(0xff);
        }
        2 => {
            let run = run(noise, 600);
            bytes[at..at + run].fill(0);
        }
        3 => {
            let run = run(noise, 64);
            for byte in &mut bytes[at..at + run] {
                *byte = noise.next() as u8;
            }
        }
        4 => {
            let run = run(noise, 4096);
            let from = noise.below(len - run as u64 + 1) as usize;
            bytes.copy_within(from..from + run, at);
        }
        _ => {
            let word = (1u64 << noise.below(64)).to_le_bytes();
            let run = run(noise, 8);
            bytes[at..at + run].copy_from_slice(&word[..run]);
        }
    }
}
