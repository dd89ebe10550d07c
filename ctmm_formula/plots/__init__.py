"""Pictures of fits and scans: matplotlib Axes in and out, nothing shown, nothing written."""

from .checks import influence as influence
from .checks import influence_data as influence_data
from .checks import residuals as residuals
from .checks import residuals_data as residuals_data
from .data import missing as missing
from .data import missing_data as missing_data
from .data import noise as noise
from .data import noise_data as noise_data
from .fits import components as components
from .fits import components_data as components_data
from .fits import gene as gene
from .fits import gene_data as gene_data
from .fits import shares as shares
from .fits import shares_data as shares_data
