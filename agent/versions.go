package agent

import (
	"context"
	"slices"

	"secretagent/upstream"
)

// maxVersionsShown bounds the versions of one secret that are shown; it is also the most that
// the built-in backend keeps without their labels.
const maxVersionsShown = 100

// VersionList is what GET /status/versions says about one secret of the built-in backend.
type VersionList struct {
	SecretName upstream.SecretName
	Versions   []upstream.SecretVersion // oldest first, those without a label included
	Omitted    int                      `json:",omitzero"` // older ones, beyond 100
}

// versions lists the versions of a secret from a backend that is ours. On the cloud it would
// cost a call of a kind that is granted sparingly.
func (a *Agent) versions(ctx context.Context, name upstream.SecretName) (any, error) {
	out, err := a.backend.manager().ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{
		SecretName: name, IncludeDeprecated: true, Page: upstream.Page{Number: 1, Size: maxVersionsShown},
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(out.Versions)
	return VersionList{
		SecretName: name, Versions: append([]upstream.SecretVersion{}, out.Versions...), // [] in JSON, not null
		Omitted: max(0, out.TotalCount-len(out.Versions)),
	}, nil
}
