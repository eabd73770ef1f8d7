package upstream

// Glob reports whether pattern matches s as a whole. In it * stands for any characters, none
// included, and ? for one. It backtracks only to the last star, so its time is bounded by the
// product of both lengths.
func Glob(pattern, s string) bool {
	p, i := 0, 0
	star, resume := -1, 0 // where the last star is, and where to try again after it
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, i
			if p++; p == len(pattern) {
				return true
			}
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			resume++
			p, i = star+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// Permits reports whether one of the patterns matches name. Nil patterns permit every secret, and
// so does "*". Any other pattern speaks of names, or of ARNs when it is one itself: who may read
// app/* here may not read what other accounts call so.
func Permits(patterns []string, name SecretName) bool {
	for _, p := range patterns {
		if Glob(p, string(name)) && (p == "*" || (name.Account() == "") == (SecretName(p).Account() == "")) {
			return true
		}
	}
	return patterns == nil
}
