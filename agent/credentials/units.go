package credentials

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"secretagent/upstream"
)

// Unit says which secrets a unit of systemd gets.
type Unit struct {
	Name    string // app.service, or with * for any text and ? for one character
	Secrets []Secret
}

// Secret is a rule for the credentials of a unit; see the package documentation.
type Secret struct {
	Credential string // empty: the last part of Name; where that has a star, any
	Name       string // of the secret, as [upstream.ParseSecretRef] reads it
}

const (
	anyName  = "*"  // stands for the name of the credential
	instance = "%i" // stands for the instance of the unit
)

// credential returns which credential the rule is for; * for any.
func (s Secret) credential() string {
	switch {
	case s.Credential != "":
		return s.Credential
	case strings.Contains(s.Name, anyName):
		return anyName
	}
	return s.Name[strings.LastIndexByte(s.Name, '/')+1:]
}

// ref returns the secret that stands for a credential of a unit.
func (s Secret) ref(unit, credential string) (upstream.SecretRef, error) {
	name := strings.Replace(s.Name, anyName, credential, 1)
	if strings.Contains(name, instance) {
		_, of, _ := strings.Cut(unit, "@")
		of = of[:max(0, strings.LastIndexByte(of, '.'))]
		if !credentialName.MatchString(of) {
			return upstream.SecretRef{}, fmt.Errorf("the instance of the unit cannot be part of the name of a secret, which the rule %q makes of it", s.Name)
		}
		name = strings.ReplaceAll(name, instance, of)
	}
	ref, err := upstream.ParseSecretRef(name)
	if err == nil {
		err = ref.Validate()
	}
	return ref, err
}

// Names of units, with wildcards, and of credentials and instances that can be part of the name of
// a secret.
var (
	unitName       = regexp.MustCompile(`^[A-Za-z0-9:_.\\@*?-]{1,255}$`)
	unitType       = regexp.MustCompile(`(\.(service|socket|mount|swap|scope)|\*)$`)
	credentialName = regexp.MustCompile(`^[A-Za-z0-9_.@+=-]{1,255}$`)
)

// checkUnits adds every problem with units.
func checkUnits(p *upstream.OptionErrors, units []Unit) {
	for _, u := range units {
		at := "units." + u.Name
		switch {
		case !unitName.MatchString(u.Name):
			p.Addf(at, "", "must be the name of a unit, with * for any text and ? for one character")
		case !unitType.MatchString(u.Name):
			p.Addf(at, "", "must be the whole name of a unit, as in %s.service", u.Name)
		}
		if len(u.Secrets) == 0 {
			p.Addf(at, "", `must not be empty; ["app/*"] gives app/db as the credential db`)
		}
		taken := map[string]string{}
		for i, s := range u.Secrets {
			key := fmt.Sprintf("%s[%d]", at, i)
			if s.Credential != "" {
				key = at + "." + s.Credential
			}
			if reason := s.check(u.Name); reason != "" {
				p.Addf(key, s.Name, "%s", reason)
				continue
			}
			credential := s.credential()
			if other, ok := taken[credential]; ok {
				p.Addf(key, s.Name, "stands for the credential %s, as %s does: write {NAME: %s} with another NAME for it", credential, other, s.Name)
			}
			taken[credential] = s.Name
		}
	}
}

// check returns what is wrong with the rule; nothing when it is empty.
func (s Secret) check(unit string) string {
	credential := s.credential()
	stars := strings.Count(s.Name, anyName)
	switch {
	case strings.Contains(s.Name, instance) && !strings.Contains(unit, "@"):
		return `must not have %i: it stands for the instance of a template unit, such as "app@*.service"`
	case stars > 1:
		return "must have one star at most: the name of the credential takes its place"
	case stars == 1 && credential != anyName:
		return "must have no star: the credential has a name already"
	case stars == 0 && credential == anyName:
		return "must have a star, whose place the name of the credential takes"
	case credential != anyName && !credentialName.MatchString(credential):
		return "must be for a credential whose name consists of letters, digits and _.@+=-"
	}
	if _, err := s.ref("a@a.service", "a"); err != nil {
		return "must be the name of a secret, with a star for the name of the credential, and %i for the instance of a template unit"
	}
	return ""
}

// unitSet finds the rules of a unit. It is immutable.
type unitSet []Unit // the ones first that count first

func newUnitSet(units []Unit) unitSet {
	set := slices.Clone(units)
	wild := func(u Unit) int {
		if strings.ContainsAny(u.Name, "*?") {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(set, func(a, b Unit) int {
		return cmp.Or(cmp.Compare(wild(a), wild(b)), cmp.Compare(len(b.Name), len(a.Name)), cmp.Compare(a.Name, b.Name))
	})
	return set
}

// ref returns the secret that stands for a credential of a unit.
func (s unitSet) ref(unit, credential string) (upstream.SecretRef, error) {
	at := slices.IndexFunc(s, func(u Unit) bool { return upstream.Glob(u.Name, unit) })
	if at < 0 {
		return upstream.SecretRef{}, errUnit
	}
	for _, want := range []string{credential, anyName} {
		for _, rule := range s[at].Secrets {
			if rule.credential() == want {
				ref, err := rule.ref(unit, credential)
				if err != nil {
					err = fmt.Errorf("%w: %w", errCredential, err)
				}
				return ref, err
			}
		}
	}
	return upstream.SecretRef{}, errCredential
}
