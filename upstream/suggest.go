package upstream

import "strings"

// Suggest returns the candidate that was probably meant by word; not ok where none is like it.
func Suggest(word string, candidates []string) (string, bool) {
	best, bestDistance := "", 3
	if len(word) < 5 {
		bestDistance = 2
	}
	plain := func(s string) string {
		return strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(s, "_", ""), "-", ""))
	}
	plainWord := plain(word)
	for _, c := range candidates {
		if plain(c) == plainWord {
			return c, true
		}
		if d := editDistance(plainWord, plain(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best, best != ""
}

// editDistance returns how many bytes to insert, delete, replace or swap with their
// neighbour turn a into b. Long words are not compared: they are no typing mistakes.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
