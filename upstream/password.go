package upstream

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
)

// Lengths of a random password.
const minPasswordLen, maxPasswordLen, defaultPasswordLen = 8, 128, 32

// The characters of each type. Backtick and space are in none.
const (
	lowercase   = "abcdefghijklmnopqrstuvwxyz"
	uppercase   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numbers     = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
)

// Draw draws a password: every password that fits the request is equally likely. A type of
// which ExcludeCharacters leaves nothing counts as excluded. It fails with
// [ErrInvalidParameter].
func (in RandomPasswordInput) Draw() (SecretData, error) {
	length := cmp.Or(in.PasswordLength, defaultPasswordLen)
	if length < minPasswordLen || length > maxPasswordLen {
		return SecretData{}, InvalidParameter("PasswordLength", fmt.Sprintf("%d is not in the range %d to %d", length, minPasswordLen, maxPasswordLen))
	}
	types := in.types()
	alphabet := strings.Join(types, "")
	if alphabet == "" {
		return SecretData{}, InvalidParameter("ExcludeCharacters", "together with the excluded types it leaves no character to draw from")
	}
	for {
		password := draw(alphabet, length)
		missing := slices.ContainsFunc(types, func(chars string) bool { return !strings.ContainsAny(string(password), chars) })
		// Drawing again keeps what fits equally likely; placing one of each type would
		// not. In the worst case, types of one character each beside the largest one, about one
		// draw in a hundred fits.
		if !in.RequireEachIncludedType || !missing {
			return NewSecretData(password), nil
		}
	}
}

// types returns the characters that are left of each included type.
func (in RandomPasswordInput) types() (types []string) {
	for _, t := range []struct {
		excluded bool
		chars    string
	}{
		{in.ExcludeLowercase, lowercase},
		{in.ExcludeUppercase, uppercase},
		{in.ExcludeNumbers, numbers},
		{in.ExcludePunctuation, punctuation},
	} {
		left := strings.Map(func(r rune) rune {
			if strings.ContainsRune(in.ExcludeCharacters, r) {
				return -1
			}
			return r
		}, t.chars)
		if !t.excluded && left != "" {
			types = append(types, left)
		}
	}
	return types
}

// draw returns length characters of alphabet, each equally likely. crypto/rand does not fail.
func draw(alphabet string, length int) []byte {
	// Bytes from the incomplete last run of the alphabet would favour its first characters.
	limit := 256 - 256%len(alphabet)
	password := make([]byte, 0, length)
	var random [64]byte
	for len(password) < length {
		_, _ = rand.Read(random[:])
		for _, b := range random {
			if int(b) < limit && len(password) < length {
				password = append(password, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return password
}
