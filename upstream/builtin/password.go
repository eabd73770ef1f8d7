package builtin

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"secretagent/upstream"
)

// Lengths of a random password.
const (
	minPasswordLength     = 8
	maxPasswordLength     = 128
	defaultPasswordLength = 32
)

// The characters of each type. Backtick and space are in none.
const (
	lowercase   = "abcdefghijklmnopqrstuvwxyz"
	uppercase   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numbers     = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
)

// GetRandomPassword draws a password: every password that fits the request is equally likely.
// A type of which ExcludeCharacters leaves nothing counts as excluded.
func (s *Store) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	if err := ctx.Err(); err != nil {
		return upstream.SecretData{}, err
	}
	password, err := randomPassword(in)
	if err != nil {
		return upstream.SecretData{}, refer(err, "GetRandomPassword", upstream.SecretRef{})
	}
	return upstream.NewSecretData(password), nil
}

func randomPassword(in upstream.RandomPasswordInput) ([]byte, error) {
	length := in.PasswordLength
	if length == 0 {
		length = defaultPasswordLength
	}
	if length < minPasswordLength || length > maxPasswordLength {
		return nil, upstream.InvalidParameter("PasswordLength", fmt.Sprintf("%d is not in the range %d to %d", length, minPasswordLength, maxPasswordLength))
	}
	var types []string
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
	alphabet := strings.Join(types, "")
	if alphabet == "" {
		return nil, upstream.InvalidParameter("ExcludeCharacters", "together with the excluded types it leaves no character to draw from")
	}
	for {
		password := draw(alphabet, length)
		// Drawing again keeps what fits equally likely; placing one of each type would
		// not. In the worst case, types of one character each beside the largest one, about one
		// draw in a hundred fits.
		if !in.RequireEachIncludedType || hasEach(password, types) {
			return password, nil
		}
	}
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

func hasEach(password []byte, types []string) bool {
	for _, chars := range types {
		if !strings.ContainsAny(string(password), chars) {
			return false
		}
	}
	return true
}
