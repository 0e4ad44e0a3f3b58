"""What an image is, a plain mammogram or not, and which of several images of one view is used.

Of several images of one view the first in this order is used; each other one is listed with the reason:

1. a full view, before one with an implant, a modified view (spot, magnified, implant-displaced, ...), and a secondary
   capture or an image of another modality;
2. FOR PRESENTATION before FOR PROCESSING (raw values);
3. the larger one, in pixels;
4. the one whose UID comes first.

An exam has the images of one study only, the latest in which a full view can be used. This is decided by the headers:
an older study does not replace one whose pixels turn out to be unusable, because its labels may be others.
"""

from __future__ import annotations

from typing import Any

import pydicom

TAGS = [
    *("Modality", "SOPClassUID", "ViewModifierCodeSequence", "BreastImplantPresent", "PresentationIntentType"),
    *("StudyInstanceUID", "StudyDate", "StudyTime"),
]
# Accepted values of Modality, "" if the tag was removed. Apart from MG, they occur on films, captures and old devices.
MODALITIES = ("MG", "", "CR", "DX", "RG", "OT", "SC")
SECONDARY = (  # SOP classes: secondary captures, tomosynthesis (several frames)
    *("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.1", "1.2.840.10008.5.1.4.1.1.7.2"),
    *("1.2.840.10008.5.1.4.1.1.7.3", "1.2.840.10008.5.1.4.1.1.7.4", "1.2.840.10008.5.1.4.1.1.13.1.3"),
)
MODIFIERS = {  # view modifiers of DICOM (CID 4015): SNOMED CT codes and the older SRT codes
    **dict.fromkeys(("399163009", "R-102D6"), "a magnified view"),
    **dict.fromkeys(("399055006", "R-102D7"), "a spot view"),
    **dict.fromkeys(("399209000", "R-102D5"), "an implant-displaced view"),
    **dict.fromkeys(("399110001", "R-102C2"), "a tangential view"),
}
OTHER_STUDY = "from another study of the patient; an exam uses only one study"
NO_STUDY = "from another study of the patient; none of the images of the chosen study can be used"
FULL, IMPLANT, MODIFIED, CAPTURE, OTHER = range(5)  # ranks, the best first


def describe_kind(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Describe what a header's image is.

    Returns:
        `rank` (FULL to OTHER), `kind` (in words, "" for FULL), `raw` (whether it is FOR PROCESSING), `study`
        (StudyInstanceUID) and `taken` (date and time of the study, sortable).
    """
    modality, codes = str(dataset.get("Modality") or "").strip().upper(), _modifier_codes(dataset)
    rank, kind = FULL, ""
    if modality not in ("MG", ""):
        rank, kind = OTHER, f"an image of the modality {modality}, not MG"
    elif str(dataset.get("SOPClassUID") or "") in SECONDARY:
        rank, kind = CAPTURE, "a secondary capture"
    elif codes:
        rank, kind = MODIFIED, next((MODIFIERS[code] for code in codes if code in MODIFIERS), "a modified view")
    elif str(dataset.get("BreastImplantPresent") or "").strip().upper() == "YES":
        rank, kind = IMPLANT, "a view with an implant"
    date = str(dataset.get("StudyDate") or "").strip()
    return {
        "rank": rank,
        "kind": kind,
        "raw": str(dataset.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING",
        "study": str(dataset.get("StudyInstanceUID") or "").strip(),
        "taken": (date + str(dataset.get("StudyTime") or "").strip()) if date else "",
    }


def preference(header: dict[str, Any]) -> tuple:
    """Sort key of the images of one view: the one to be used comes first."""
    return header["rank"], header["raw"], -header["rows"] * header["columns"], header["image"]


def explain_preference(used: dict[str, Any], other: dict[str, Any]) -> str:
    """Explain why `used` is used and `other`, of the same view, is not."""
    if used["rank"] != other["rank"]:
        return f"this is {other['kind']}"
    if used["raw"] != other["raw"]:
        return "this is FOR PROCESSING"
    return "this is smaller" if preference(used)[2] != preference(other)[2] else "this has the later UID"


def choose_study(headers: list[dict[str, Any]]) -> str:
    """Choose the study of an exam: one with a full view, the latest, the one with most views, the last UID."""
    studies: dict[str, list[dict]] = {}
    for header in headers:
        studies.setdefault(header["study"], []).append(header)

    def quality(study: str) -> tuple:
        images = studies[study]
        views = {(header["side"], header["view"]) for header in images}
        return min(h["rank"] for h in images) < MODIFIED, max(h["taken"] for h in images), len(views), study

    return max(studies, key=quality)


def _modifier_codes(dataset: pydicom.Dataset) -> list[str]:
    """The codes of ViewModifierCodeSequence, which the standard puts into the item of ViewCodeSequence."""
    holders = [dataset, *(dataset.get("ViewCodeSequence") or [])]
    items = [item for holder in holders for item in holder.get("ViewModifierCodeSequence") or []]
    return [str(item.get("CodeValue") or "").strip() for item in items]
