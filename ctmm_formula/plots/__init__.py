"""Pictures of fits and scans: matplotlib Axes in and out, nothing shown, nothing written."""

from .checks import influence as influence
from .checks import influence_data as influence_data
from .checks import residuals as residuals
from .checks import residuals_data as residuals_data
from .curves import power_curves as power_curves
from .curves import power_curves_data as power_curves_data
from .data import missing as missing
from .data import missing_data as missing_data
from .data import noise as noise
from .data import noise_data as noise_data
from .differentiation import differentiation as differentiation
from .differentiation import differentiation_data as differentiation_data
from .fits import components as components
from .fits import components_data as components_data
from .fits import gene as gene
from .fits import gene_data as gene_data
from .fits import shares as shares
from .fits import shares_data as shares_data
from .pvalues import qq as qq
from .pvalues import qq_data as qq_data
from .scans import correlations as correlations
from .scans import correlations_data as correlations_data
from .scans import variances as variances
from .scans import variances_data as variances_data
