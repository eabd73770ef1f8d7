//go:build race

package kms

// raceDetector tells tests that only compute to leave their turn to those that race.
const raceDetector = true
