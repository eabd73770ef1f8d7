package upstreamtest

import (
	"fmt"
	"testing"

	"secretagent/upstream"
)

// CheckRules checks every secret of m against the label rules, whatever its history was: one version is
// current, a label is on one version that is there, no limit is exceeded, and every value can be read.
func CheckRules(tb testing.TB, m upstream.Manager, maxVersions int) {
	tb.Helper()
	for page := 1; ; page++ {
		list, err := m.ListSecrets(tb.Context(), upstream.ListSecretsInput{Page: upstream.Page{Number: page, Size: 100}})
		if err != nil {
			tb.Errorf("check: %v", err)
			return
		}
		for _, s := range list.Secrets {
			if s.PlannedDeleteTime.IsZero() {
				for _, problem := range brokenRules(tb, m, s.SecretName, maxVersions) {
					tb.Errorf("%s: %s", s.SecretName, problem)
				}
			}
		}
		if page*100 >= list.TotalCount {
			return
		}
	}
}

func brokenRules(tb testing.TB, m upstream.Manager, name upstream.SecretName, maxVersions int) (problems []string) {
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	in := upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: true, Page: upstream.Page{Size: 100}}
	list, err := m.ListSecretVersionIDs(tb.Context(), in)
	if err != nil {
		report("its versions cannot be listed: %v", err)
	}
	if list.TotalCount > maxVersions {
		report("it has %d versions", list.TotalCount)
	}
	ids, labels := map[upstream.VersionID]bool{}, map[upstream.VersionStage]bool{}
	for _, v := range list.Versions {
		if ids[v.VersionID] {
			report("version %s is there twice", v.VersionID)
		}
		ids[v.VersionID] = true
		for _, stage := range v.VersionStages {
			if labels[stage] {
				report("label %s is there twice", stage)
			}
			labels[stage] = true
		}
		if _, err := m.GetSecretValue(tb.Context(), upstream.SecretRef{SecretName: name, VersionID: v.VersionID}); err != nil {
			report("version %s cannot be read: %v", v.VersionID, err)
		}
	}
	if !labels[upstream.ACSCurrent] {
		report("no version is current")
	}
	if len(labels) > upstream.MaxVersionStages {
		report("it has %d labels", len(labels))
	}
	return problems
}
